"""The embedded engine: PyTorch, paged KV, continuous batching."""
