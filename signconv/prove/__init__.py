"""What can be proved of an optimizer, for ``signconv show`` and the tables."""
