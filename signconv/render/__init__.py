"""Text of the generated file: printers for arithmetic, Jinja templates for structure."""
