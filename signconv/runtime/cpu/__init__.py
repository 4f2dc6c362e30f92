"""The CPU backend: the reference, traced into LLVM."""
