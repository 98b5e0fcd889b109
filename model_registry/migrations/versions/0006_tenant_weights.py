"""Give each tenant a weight: its share of a device, relative to that of others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tenants", sa.Column("weight", sa.Double(), nullable=False, server_default="1"))


def downgrade() -> None:
    op.execute("ALTER TABLE tenants DROP COLUMN weight")
