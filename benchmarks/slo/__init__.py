"""Benchmark of SLO classes: four kinds of tenants on one device, under less and more load than it has capacity."""
