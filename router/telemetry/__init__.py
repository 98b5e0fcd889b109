"""Metrics of requests, steps, residency and memory."""
