"""Indexes for lists, deletion by age, and years of history: made while the installation runs

Each index is made without a lock that stops writers, outside any transaction. So a migration that was cut off may have
left a part of this behind, and begins again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

INDEXES = {
    "ix_jobs_newest": "jobs (tenant, uuid_send(id))",
    "ix_jobs_unfinished_listing": "jobs (tenant, status, kind, uuid_send(id)) WHERE status IN ('queued', 'running')",
    "ix_jobs_finished_listing": "jobs (tenant, status, kind, uuid_send(id)) WHERE status NOT IN ('queued', 'running')",
    "ix_jobs_finished": "jobs (status, finished_at) WHERE finished_at IS NOT NULL",
    "ix_jobs_images": "jobs (tenant, (request #>> '{image,file_id}')) "
    "WHERE status IN ('queued', 'running') AND request #>> '{image,file_id}' IS NOT NULL",
    "ix_files_used_at": "files (used_at)",
    "ix_batch_lines_job_id": "batch_lines (job_id)",
    "ix_batches_finished": "batches (finished_at) WHERE finished_at IS NOT NULL",
    "ix_batches_input_id": "batches (input_id)",
    "ix_documents_created_at": "documents (created_at)",
    "ix_documents_purpose": "documents (tenant, purpose, uuid_send(id))",
}

# Dead versions of rows stay in the small indexes of the queue until a vacuum. By default it would begin when a fifth of
# the table is dead, and of years of history that is a lot.
VACUUM = {"autovacuum_vacuum_scale_factor": "0.01", "autovacuum_analyze_scale_factor": "0.01"}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE files ADD COLUMN IF NOT EXISTS used_at timestamptz NOT NULL DEFAULT now()")
        for table in ("jobs", "shards", "webhooks"):
            settings = ", ".join(f"{name} = {value}" for name, value in VACUUM.items())
            op.execute(f"ALTER TABLE {table} SET ({settings})")
        existing = sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
        for name, definition in INDEXES.items():
            valid = op.get_bind().execute(existing, {"name": name}).scalar()
            if valid is False:
                op.execute(f"DROP INDEX CONCURRENTLY {name}")
            if not valid:
                op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")
        # Others do their work.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_unfinished")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS ix_jobs_listing")


def downgrade() -> None:
    op.create_index(
        "ix_jobs_unfinished", "jobs", ["tenant"], postgresql_where=sa.text("status IN ('queued', 'running')")
    )
    op.create_index("ix_jobs_listing", "jobs", ["tenant", "id"])
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
    for table in ("jobs", "shards", "webhooks"):
        op.execute(f"ALTER TABLE {table} RESET ({', '.join(VACUUM)})")
    op.drop_column("files", "used_at")
