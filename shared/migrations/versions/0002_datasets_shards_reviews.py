"""Data sets, their shards, and what people said of their images"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("request", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("destination", sa.String(), nullable=True),
        sa.Column("kinds", sa.String(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), server_default="planning", nullable=False),
        sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("available_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("estimate", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_detail", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("planned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('planning', 'running', 'exporting', 'succeeded', 'failed', 'cancelled')",
            name=op.f("ck_datasets_status"),
        ),
        sa.CheckConstraint("priority BETWEEN 0 AND 9", name=op.f("ck_datasets_priority")),
        sa.CheckConstraint("(lease_until IS NULL) = (worker IS NULL)", name=op.f("ck_datasets_lease_has_worker")),
        sa.CheckConstraint(
            "lease_until IS NULL OR status IN ('planning', 'exporting')", name=op.f("ck_datasets_leased_for_a_reason")
        ),
        sa.CheckConstraint(
            "(status IN ('planning', 'running', 'exporting')) = (finished_at IS NULL)",
            name=op.f("ck_datasets_terminal_is_finished"),
        ),
        sa.CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name=op.f("ck_datasets_failed_has_error")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
    )
    op.create_index(
        "uq_datasets_destination",
        "datasets",
        ["destination"],
        unique=True,
        postgresql_where=sa.text("status IN ('planning', 'running', 'exporting')"),
    )
    op.create_index("ix_datasets_listing", "datasets", ["tenant", "id"], unique=False)
    op.create_table(
        "shards",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("plan_key", sa.String(), nullable=False),
        sa.Column("results_key", sa.String(), nullable=True),
        sa.Column("again", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("status", sa.String(), server_default="queued", nullable=False),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crashes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("available_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("dispatch_due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("worker", sa.String(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("kept", sa.Integer(), server_default="0", nullable=False),
        sa.Column("tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("error_code", sa.String(), nullable=True),
        sa.Column("error_detail", sa.String(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('queued', 'running', 'done', 'failed', 'cancelled')", name=op.f("ck_shards_status")
        ),
        sa.CheckConstraint(
            "(status = 'running') = (lease_until IS NOT NULL AND worker IS NOT NULL)",
            name=op.f("ck_shards_running_has_lease"),
        ),
        sa.CheckConstraint(
            "(status IN ('queued', 'running')) = (finished_at IS NULL)", name=op.f("ck_shards_terminal_is_finished")
        ),
        sa.CheckConstraint("status <> 'done' OR results_key IS NOT NULL", name=op.f("ck_shards_done_has_results")),
        sa.CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name=op.f("ck_shards_failed_has_error")),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_shards_dataset_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shards")),
        sa.UniqueConstraint("dataset_id", "number", name=op.f("uq_shards_dataset_id_number")),
        postgresql_with={"fillfactor": "80"},
    )
    op.create_index(
        "ix_shards_queued",
        "shards",
        ["dataset_id", "dispatch_due_at"],
        unique=False,
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "ix_shards_running", "shards", ["worker"], unique=False, postgresql_where=sa.text("status = 'running'")
    )
    op.create_table(
        "reviews",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("dataset_id", sa.Uuid(), nullable=False),
        sa.Column("image", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=True),
        sa.Column("text", sa.String(), nullable=True),
        sa.Column("language", sa.String(), nullable=True),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("verdict IN ('accepted', 'rejected')", name=op.f("ck_reviews_verdict")),
        sa.CheckConstraint("text IS NOT NULL OR verdict IS NOT NULL", name=op.f("ck_reviews_says_something")),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_reviews_dataset_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reviews")),
    )
    op.create_index("ix_reviews_image", "reviews", ["dataset_id", "image"], unique=False)


def downgrade() -> None:
    op.drop_index("ix_reviews_image", table_name="reviews")
    op.drop_table("reviews")
    op.drop_index("ix_shards_running", table_name="shards", postgresql_where=sa.text("status = 'running'"))
    op.drop_index("ix_shards_queued", table_name="shards", postgresql_where=sa.text("status = 'queued'"))
    op.drop_table("shards")
    op.drop_index("ix_datasets_listing", table_name="datasets")
    op.drop_index(
        "uq_datasets_destination",
        table_name="datasets",
        postgresql_where=sa.text("status IN ('planning', 'running', 'exporting')"),
    )
    op.drop_table("datasets")
