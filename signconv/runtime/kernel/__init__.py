"""The Triton backend: kernels, their launches, and the tables they read."""
