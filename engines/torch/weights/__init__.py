"""Weights on their way from the host copy to the device."""
