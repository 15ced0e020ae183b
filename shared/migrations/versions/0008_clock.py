"""How far the times of rows were shifted after jumps of the clock"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "clock",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("shifted", sa.Double(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clock")),
        sa.CheckConstraint("id = 1", name=op.f("ck_clock_one_row")),
    )
    op.execute("INSERT INTO clock (id) VALUES (1)")


def downgrade() -> None:
    op.drop_table("clock")
