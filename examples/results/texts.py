"""The texts of one call: read, turned into tokens where the model wants them, handed to workers."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from bpe import tokenized
from data import KINDS, Text, load_text
from gpt import VOCAB


def load_texts(max_bytes: int, vocab: int, cache: Path) -> list[Text]:
    """Both kinds of text, as bytes or as tokens of the first one's vocabulary."""
    texts = [load_text(kind, max_bytes) for kind in KINDS]
    return [tokenized(t, vocab, cache, texts[0]) for t in texts] if vocab > VOCAB else texts


def save_texts(max_bytes: int, vocab: int, cache: Path, scratch: Path) -> list[Text]:
    """Read both kinds of text and put them where the workers wait for them."""
    texts = load_texts(max_bytes, vocab, cache)
    torch.save(texts, scratch / "texts.partial")
    (scratch / "texts.partial").rename(scratch / "texts.pt")
    return texts


def same_text(texts: Collection[Text], done: Collection[Path], stem: str = "environment") -> None:
    """SystemExit where the runs to resume, by the environments beside them, had another text."""
    for path in (p for d in done for p in sorted(d.parent.glob(f"{stem}*.json"))):
        before = {t["kind"]: _identity(t) for t in json.loads(path.read_text("utf-8"))["texts"]}
        for text in texts:
            now = text.digest, (text.tokenizer or {}).get("sha256", "")
            if before.get(text.kind, now) != now:
                raise SystemExit(
                    f"error: the {text.kind} text on this machine is not that of {path}, and "
                    "losses on different texts cannot be compared; train where the same packages "
                    "are installed, or without --done"
                )


def _identity(facts: dict[str, Any]) -> tuple[str, str]:
    return facts["sha256"], facts.get("tokenizer", {}).get("sha256", "")
