"""Built-in optimizers, one short file each; a new file here needs no registration."""
