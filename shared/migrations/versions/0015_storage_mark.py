"""The mark that database and storage share, and the release of each worker"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "storage_mark",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("token", sa.Uuid(), nullable=True),
        sa.Column("pending", sa.Uuid(), nullable=True),
        sa.Column("marked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_storage_mark")),
        sa.CheckConstraint("id = 1", name=op.f("ck_storage_mark_one_row")),
    )
    op.execute("INSERT INTO storage_mark (id) VALUES (1)")
    op.add_column("workers", sa.Column("release", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("workers", "release")
    op.drop_table("storage_mark")
