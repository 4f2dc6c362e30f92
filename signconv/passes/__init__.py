"""Rewrites of Programs; each is one small file with its own requirements and refusals."""
