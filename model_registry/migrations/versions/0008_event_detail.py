"""Keep of each decision, as data, who had to go for whom and by which scores."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("detail", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.execute("ALTER TABLE events DROP COLUMN detail")
