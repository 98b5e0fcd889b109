"""Imports: from a folder, a GGUF file or a hub to a version in the artifact store."""
