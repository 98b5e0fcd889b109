"""The KServe v2 protocol as Triton speaks it: a core that knows no wire, and the doors around it."""
