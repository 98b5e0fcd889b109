"""TensorRT-LLM as an engine: its models, its batches and its KV cache, under this server's leases."""
