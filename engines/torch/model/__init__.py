"""The transformer as plain PyTorch modules, and the inputs of one forward pass."""
