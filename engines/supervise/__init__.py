"""The server's side of workers: starts them, speaks to them, has artifacts packed."""
