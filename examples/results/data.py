"""Real text that needs no download: the sources that lie in this Python's site-packages.

Packages, not windows or files, are split into training and held-out text, so that no held-out line
has a neighbour in training.

    text = load_text("python")
    text.train, text.held_out        # uint8, one token per byte (bpe.py makes other tokens of it)
    text.facts()                     # what it was made of, with the hash of the split
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Two kinds of text: what is trained on first, and what fine-tuning goes on with.
KINDS = {
    "python": (".py", ".pyi"),
    "headers": (".h", ".hpp", ".hxx", ".cuh", ".inl"),  # C, C++ and CUDA
}
#: Copies of other packages, which would put held-out text into training.
SKIPPED_FOLDERS = {"__pycache__", "_vendor", "vendored", "extern", "third_party", "node_modules"}
LARGEST_FILE = 1_000_000  # bytes; larger ones are tables and generated code
HELD_OUT_SHARE = 0.05  # of all bytes, about
LARGEST_HELD_OUT = 0.10  # a package with more of all bytes than this is always for training


@dataclass(frozen=True)
class Text:
    """One kind of text as two uint8 tensors, and what they were made of."""

    kind: str
    train: Tensor
    held_out: Tensor
    packages: dict[str, int]  # of training: bytes of each
    held_out_packages: dict[str, int]
    files: int
    digest: str  # sha256 over each file's path, side and contents
    lengths: Tensor | None = None  # bytes of each token, where tokens are not bytes
    tokenizer: dict[str, Any] | None = None  # settings and hash, likewise

    def facts(self) -> dict[str, Any]:
        """What a results file records of the text: everything but the text."""
        if self.tokenizer:
            sizes = (sum(self.packages.values()), sum(self.held_out_packages.values()))
        else:
            sizes = (len(self.train), len(self.held_out))
        return {
            "kind": self.kind,
            "train_bytes": sizes[0],
            "held_out_bytes": sizes[1],
            "files": self.files,
            "sha256": self.digest,
            "packages": self.packages,
            "held_out_packages": self.held_out_packages,
            **({"tokenizer": self.tokenizer} if self.tokenizer else {}),
        }


def folders() -> list[Path]:
    """The site-packages folders that Python imports from."""
    names = [p for p in sys.path if p.rstrip("/").endswith(("site-packages", "dist-packages"))]
    return [Path(p) for p in dict.fromkeys(names) if os.path.isdir(p)]


def _files(roots: list[Path], endings: tuple[str, ...]) -> Iterator[tuple[bytes, str, Path]]:
    """(key, package, path) of every file; the key, a hash of the relative path, orders them."""
    for root in roots:
        for parent, subfolders, names in os.walk(root):
            subfolders[:] = [s for s in subfolders if s not in SKIPPED_FOLDERS]
            for name in names:
                if name.endswith(endings):
                    path = Path(parent, name)
                    relative = path.relative_to(root)
                    key = hashlib.sha256(relative.as_posix().encode()).digest()
                    yield key, relative.parts[0], path


def _held_out(sizes: dict[str, int]) -> set[str]:
    """Packages in the order of their names' hashes, until they hold their share of the bytes."""
    total = sum(sizes.values())
    chosen: set[str] = set()
    for name in sorted(sizes, key=lambda n: hashlib.sha256(n.encode()).digest()):
        if sum(sizes[n] for n in chosen) >= HELD_OUT_SHARE * total:
            break
        if sizes[name] <= LARGEST_HELD_OUT * total:
            chosen.add(name)
    return chosen


def load_text(kind: str, max_bytes: int = 400_000_000, roots: list[Path] | None = None) -> Text:
    """Read one kind of text and split it by package.

    kind: a key of KINDS; max_bytes: where to stop, in the order of the paths' hashes; roots: the
    folders whose direct children are packages (default: site-packages).  A file whose contents
    were read before, under another name, is left out.  Raises ValueError where either side of
    the split would be empty.
    """
    read: dict[str, list[tuple[bytes, bytes]]] = defaultdict(list)
    seen: set[bytes] = set()
    total = 0
    for key, package, path in sorted(_files(roots or folders(), KINDS[kind])):
        try:
            if path.stat().st_size > LARGEST_FILE:
                continue
            contents = path.read_bytes()
        except OSError:  # a broken link
            continue
        digest = hashlib.sha256(contents).digest()
        if digest in seen or not contents:
            continue
        if total + len(contents) > max_bytes:
            break
        seen.add(digest)
        read[package].append((key, contents))
        total += len(contents)

    sizes = {name: sum(len(c) for _, c in files) for name, files in read.items()}
    held_out = _held_out(sizes)
    sides: tuple[list[bytes], list[bytes]] = ([], [])
    whole = hashlib.sha256()
    for name in sorted(read):
        side = int(name in held_out)
        for key, contents in read[name]:
            sides[side].append(contents)
            whole.update(key + bytes([side]) + hashlib.sha256(contents).digest())
    train, rest = (b"\n".join(side) for side in sides)
    if not train or not rest:
        raise ValueError(
            f"too little {kind} text in site-packages to split by package: {total} bytes of "
            f"{len(read)} packages"
        )
    return Text(
        kind=kind,
        train=torch.frombuffer(bytearray(train), dtype=torch.uint8),
        held_out=torch.frombuffer(bytearray(rest), dtype=torch.uint8),
        packages={n: sizes[n] for n in sorted(sizes) if n not in held_out},
        held_out_packages={n: sizes[n] for n in sorted(held_out)},
        files=len(seen),
        digest=whole.hexdigest(),
    )


def starts(text: Tensor, shape: tuple[int, ...], length: int, generator: torch.Generator) -> Tensor:
    """Random starts of windows of `length` + 1 tokens, int64 of `shape`, on text's device."""
    return torch.randint(len(text) - length - 1, shape, generator=generator).to(text.device)


def windows(text: Tensor, first: Tensor, length: int) -> Tensor:
    """The windows that start at `first` (n,): (n, length + 1) uint8."""
    return text[first.unsqueeze(1) + torch.arange(length + 1, device=text.device)]
