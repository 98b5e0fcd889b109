"""Let each deployment say who shares its prefix cache."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("deployments") as deployments:
        deployments.add_column(
            sa.Column("prefix_cache", sa.String(16), nullable=False, server_default="tenant")
        )


def downgrade() -> None:
    with op.batch_alter_table("deployments") as deployments:
        deployments.drop_column("prefix_cache")
