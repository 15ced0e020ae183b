"""Bounds and a webhook secret for each API key, and what each tenant has stored"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# All of it is added: processes of the release before go on. They neither know nor need the counter, since triggers keep
# it: whichever statement of whichever release adds or removes a file, the counter follows in the same transaction. A
# trigger that changes counters takes them in the order of their tenants, so that no two wait for each other.
_COUNT = """
CREATE FUNCTION tuwen_count_stored() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tenant_usage AS u (tenant, stored_bytes)
    SELECT tenant, sum(size) * CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END FROM changed GROUP BY tenant ORDER BY tenant
    ON CONFLICT (tenant) DO UPDATE SET stored_bytes = u.stored_bytes + EXCLUDED.stored_bytes;
    RETURN NULL;
END
$$
"""
_FORGET = """
CREATE FUNCTION tuwen_forget_results() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO tenant_usage AS u (tenant, stored_bytes)
    SELECT tenant, -sum(stored_bytes) FROM changed WHERE stored_bytes > 0 GROUP BY tenant ORDER BY tenant
    ON CONFLICT (tenant) DO UPDATE SET stored_bytes = u.stored_bytes + EXCLUDED.stored_bytes;
    RETURN NULL;
END
$$
"""
_TRIGGER = """
CREATE TRIGGER {name} AFTER {event} ON {table} REFERENCING {row} TABLE AS changed
FOR EACH STATEMENT EXECUTE FUNCTION {function}()
"""
_TRIGGERS = [
    {"name": f"{table}_{event.lower()}_counted", "event": event, "table": table, "row": row, "function": function}
    for table, event, row, function in (
        ("files", "INSERT", "NEW", "tuwen_count_stored"),
        ("files", "DELETE", "OLD", "tuwen_count_stored"),
        ("documents", "INSERT", "NEW", "tuwen_count_stored"),
        ("documents", "DELETE", "OLD", "tuwen_count_stored"),
        ("jobs", "DELETE", "OLD", "tuwen_forget_results"),
    )
]


def upgrade() -> None:
    kinds: dict[str, sa.types.TypeEngine[Any]] = {
        "max_stored_bytes": sa.BigInteger(),
        "max_datasets": sa.Integer(),
        "max_batches": sa.Integer(),
        "webhook_secret": sa.String(),
        "old_webhook_secret": sa.String(),
        "old_webhook_secret_until": sa.DateTime(timezone=True),
    }
    for column, kind in kinds.items():
        op.add_column("api_keys", sa.Column(column, kind, nullable=True))
    op.add_column("jobs", sa.Column("key_id", sa.Uuid(), nullable=True))
    op.add_column("jobs", sa.Column("stored_bytes", sa.BigInteger(), nullable=True))
    op.add_column("batches", sa.Column("max_stored_bytes", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_datasets_moving",
        "datasets",
        ["tenant"],
        postgresql_where=sa.text("status IN ('planning', 'running', 'exporting')"),
    )
    op.create_index("ix_batches_unfinished", "batches", ["tenant"], postgresql_where=sa.text("finished_at IS NULL"))
    op.create_table(
        "tenant_usage",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("stored_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("tenant", name=op.f("pk_tenant_usage")),
    )
    op.execute(_COUNT)
    op.execute(_FORGET)
    # Making a trigger locks its table against changes, so what is there by then is counted once and exactly.
    for trigger in _TRIGGERS:
        op.execute(_TRIGGER.format(**trigger))
    op.execute(
        "INSERT INTO tenant_usage (tenant, stored_bytes) SELECT tenant, sum(size) FROM "
        "(SELECT tenant, size FROM files UNION ALL SELECT tenant, size FROM documents) AS kept GROUP BY tenant"
    )


def downgrade() -> None:
    for trigger in _TRIGGERS:
        op.execute("DROP TRIGGER {name} ON {table}".format(**trigger))
    op.execute("DROP FUNCTION tuwen_count_stored()")
    op.execute("DROP FUNCTION tuwen_forget_results()")
    op.drop_table("tenant_usage")
    op.drop_index("ix_batches_unfinished", "batches")
    op.drop_index("ix_datasets_moving", "datasets")
    op.drop_column("batches", "max_stored_bytes")
    op.drop_column("jobs", "stored_bytes")
    op.drop_column("jobs", "key_id")
    for column in (
        "max_stored_bytes",
        "max_datasets",
        "max_batches",
        "webhook_secret",
        "old_webhook_secret",
        "old_webhook_secret_until",
    ):
        op.drop_column("api_keys", column)
