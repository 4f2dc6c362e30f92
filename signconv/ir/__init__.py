"""The intermediate representation: what an optimizer is, independent of how it was written."""
