"""Choosing a learning rate on the user's own model and data."""
