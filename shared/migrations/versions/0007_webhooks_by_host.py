"""Webhooks by host, and how long each has been owed"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

HOST = "COALESCE(lower(substring(url, '//([^/?#]*)')), '')"


def upgrade() -> None:
    # Processes of the previous release go on: they leave the column to its default.
    op.add_column(
        "webhooks", sa.Column("owed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
    )
    op.create_index(
        "ix_webhooks_host", "webhooks", [sa.text(HOST), "due_at"], postgresql_where=sa.text("due_at IS NOT NULL")
    )
    op.create_index(
        "ix_webhooks_undelivered", "webhooks", ["owed_at"], postgresql_where=sa.text("delivered_at IS NULL")
    )


def downgrade() -> None:
    op.drop_index("ix_webhooks_undelivered", table_name="webhooks")
    op.drop_index("ix_webhooks_host", table_name="webhooks")
    op.drop_column("webhooks", "owed_at")
