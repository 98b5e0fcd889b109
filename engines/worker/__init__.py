"""The worker process: one engine behind a gRPC service."""
