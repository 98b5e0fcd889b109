"""Mooring's own gRPC door."""
