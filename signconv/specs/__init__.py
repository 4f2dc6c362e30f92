"""Built-in optimizers, one short file each; a new file here needs no registration."""

import pkgutil


def builtin_names() -> list[str]:
    """Names of the built-in specs."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__))
