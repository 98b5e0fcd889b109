"""Let each tenant have classes that its requests may name beside its own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tenant_slo_classes",
        sa.Column("tenant_id", sa.Integer(), nullable=False),
        sa.Column("slo_class_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "slo_class_id", name="pk_tenant_slo_classes"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="fk_tenant_slo_classes_tenant_id_tenants", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["slo_class_id"],
            ["slo_classes.id"],
            name="fk_tenant_slo_classes_slo_class_id_slo_classes",
            ondelete="RESTRICT",
        ),
    )
    op.create_index("ix_tenant_slo_classes_slo_class_id", "tenant_slo_classes", ["slo_class_id"])


def downgrade() -> None:
    op.drop_index("ix_tenant_slo_classes_slo_class_id", "tenant_slo_classes")
    op.drop_table("tenant_slo_classes")
