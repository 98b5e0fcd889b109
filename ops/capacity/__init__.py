"""Capacity planning: how much of a device's memory models need."""
