"""The server process: makes the parts, opens the doors, ends in order."""
