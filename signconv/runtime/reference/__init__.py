"""The reference backend: PyTorch, one operation at a time, written for truth."""
