"""Tenants: their API keys, and which requests may share computed KV."""
