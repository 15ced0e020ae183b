"""W3C tracestate of the request that submitted a job, beside its traceparent"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Processes of the previous release go on: they leave the column empty.
    op.add_column("jobs", sa.Column("tracestate", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "tracestate")
