"""What each worker runs now, so that only that is suspect when it dies"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Both are additions that the release before does not look at: its API and workers go on meanwhile.


def upgrade() -> None:
    op.add_column("jobs", sa.Column("losses", sa.Integer(), server_default="0", nullable=False))
    op.create_table(
        "running_batches",
        sa.Column("run", sa.Uuid(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("jobs", postgresql.ARRAY(sa.Uuid()), server_default="{}", nullable=False),
        sa.Column("epochs", postgresql.ARRAY(sa.Integer()), server_default="{}", nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("run", name=op.f("pk_running_batches")),
    )


def downgrade() -> None:
    op.drop_table("running_batches")
    op.drop_column("jobs", "losses")
