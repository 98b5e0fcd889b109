"""Benchmarks: every script takes --out DIR and writes report.md, plots and results.json."""
