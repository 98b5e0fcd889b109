"""Checkpoints: what a folder of weights is, and the packed artifact that is made of it. Imports no torch."""
