"""Alembic's environment and the schema's history, for all tables of the project."""
