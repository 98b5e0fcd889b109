"""Alembic migrations of the registry, run by ``model_registry.database.migrate``."""
