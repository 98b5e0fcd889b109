"""Capacity planning: what models need of a device's memory."""
