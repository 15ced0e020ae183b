"""Roots of API keys, and which tenant's data sets read and write where"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Processes of the previous release go on: they leave the columns to their defaults, and know nothing of the table.
    op.add_column(
        "api_keys", sa.Column("dataset_roots", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False)
    )
    op.add_column("datasets", sa.Column("key_id", sa.Uuid(), nullable=True))
    op.create_table(
        "dataset_places",
        sa.Column("place", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("noted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("role IN ('source', 'destination')", name=op.f("ck_dataset_places_role")),
        sa.PrimaryKeyConstraint("place", "role", "tenant", name=op.f("pk_dataset_places")),
    )
    op.create_index(
        "uq_dataset_places_destination",
        "dataset_places",
        ["place"],
        unique=True,
        postgresql_where=sa.text("role = 'destination'"),
    )
    # What was exported before belongs to who exported there last.
    op.execute("""
        INSERT INTO dataset_places (place, role, tenant, dataset_id)
        SELECT DISTINCT ON (destination) destination, 'destination', tenant, id FROM datasets
        WHERE status = 'succeeded' AND destination IS NOT NULL ORDER BY destination, id DESC
    """)
    op.execute("""
        INSERT INTO dataset_places (place, role, tenant, dataset_id)
        SELECT DISTINCT ON (request->>'source', tenant) request->>'source', 'source', tenant, id FROM datasets
        WHERE planned_at IS NOT NULL ORDER BY request->>'source', tenant, id DESC
    """)


def downgrade() -> None:
    op.drop_table("dataset_places")
    op.drop_column("datasets", "key_id")
    op.drop_column("api_keys", "dataset_roots")
