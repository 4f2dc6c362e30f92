"""Checks of a built optimizer: kernel against reference, evaluator, and compilation."""
