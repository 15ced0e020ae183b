"""How long a job may take, so that a retry gives it as long again"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("deadline", sa.Double(), nullable=True))
    # A job that was retried before gets more than its original deadline, which is recorded nowhere.
    op.execute("UPDATE jobs SET deadline = EXTRACT(EPOCH FROM deadline_at - created_at)")
    op.alter_column("jobs", "deadline", nullable=False)


def downgrade() -> None:
    op.drop_column("jobs", "deadline")
