"""Tools that an operator runs: sample models, capacity planning, load tests."""
