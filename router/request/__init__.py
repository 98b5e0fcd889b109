"""The request that every door makes, its defaults and its bounds."""
