"""From a Program to a KernelProgram: statements in a fixed order, with no decisions left."""

from signconv.lower.schedule import lower

__all__ = ["lower"]
