"""The transformer as plain PyTorch modules, and what one forward pass is given."""
