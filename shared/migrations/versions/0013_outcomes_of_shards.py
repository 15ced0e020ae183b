"""How many images of a shard filters dropped, and how many failed for good"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Processes of the previous release leave them to their default: their dropped images count as kept.
    op.add_column("shards", sa.Column("dropped", sa.Integer(), server_default="0", nullable=False))
    op.add_column("shards", sa.Column("final", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("shards", "final")
    op.drop_column("shards", "dropped")
