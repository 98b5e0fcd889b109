"""Tenants: API keys and what they give access to."""
