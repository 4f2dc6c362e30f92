"""``python -m signconv``."""

from signconv.cli import main

main()
