"""Make the table of SLO classes, and let each tenant have one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "slo_classes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("ttft_target_s", sa.Double(), nullable=False),
        sa.Column("tpot_target_s", sa.Double(), nullable=False),
        sa.Column("goal", sa.Double(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_slo_classes"),
        sa.UniqueConstraint("name", name="uq_slo_classes_name"),
    )
    # Alembic would copy the table on SQLite and drop the old one, which the keys of tenants do not allow.
    op.execute(
        "ALTER TABLE tenants ADD COLUMN slo_class_id INTEGER "
        "CONSTRAINT fk_tenants_slo_class_id_slo_classes REFERENCES slo_classes (id)"
    )
    op.create_index("ix_tenants_slo_class_id", "tenants", ["slo_class_id"])


def downgrade() -> None:
    op.drop_index("ix_tenants_slo_class_id", "tenants")
    op.execute("ALTER TABLE tenants DROP COLUMN slo_class_id")
    op.drop_table("slo_classes")
