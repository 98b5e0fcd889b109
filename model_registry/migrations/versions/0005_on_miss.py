"""Let each SLO class say what becomes of a request that cannot meet its targets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("slo_classes", sa.Column("on_miss", sa.String(16), nullable=False, server_default="batch"))


def downgrade() -> None:
    op.execute("ALTER TABLE slo_classes DROP COLUMN on_miss")
