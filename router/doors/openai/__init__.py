"""OpenAI's API over HTTP and WebSocket."""
