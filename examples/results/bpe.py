"""Byte-pair tokens of the text in data.py, by a vocabulary that is trained here.

    text = tokenized(load_text("python"), 32_768, cache=Path("build/tokens"))
    text.train            # int16, one number per token
    text.lengths          # bytes of each token of the vocabulary
    text.facts()          # with the tokenizer's hash and settings

Nothing is downloaded: merges are learned from a sample of the training text.  The package
``tokenizers`` does both; the same package version and text give the same vocabulary, and its hash
is recorded, so that runs on another one are not mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from data import Text
from torch import Tensor

VOCABULARY = 32_768  # the largest whose numbers fit int16
SAMPLE = 40_000_000  # bytes of the training text that merges are learned from
PIECE = 65_536  # bytes that are encoded at once, about; cut at line ends
BATCH = 512  # pieces whose tokens are Python objects at one time


def package() -> Any:
    """The module ``tokenizers``; SystemExit where it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise SystemExit(
            "error: these claims train on byte-pair tokens, for which the package `tokenizers` is "
            "needed (pip install tokenizers); the claims on bytes do without it"
        ) from None
    return tokenizers


def pieces(text: bytes) -> Iterator[str]:
    """The text in pieces of about PIECE bytes, cut behind a line end where there is one."""
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + PIECE) + 1 or len(text)
        yield text[start:end].decode("utf-8", "replace")
        start = end


def sample(text: bytes, limit: int) -> list[str]:
    """Every k-th piece, so that they hold about ``limit`` bytes together."""
    return list(pieces(text))[:: max(1, round(len(text) / limit))]


def train(text: bytes, size: int, limit: int = SAMPLE) -> Any:
    """A byte-level BPE tokenizer as GPT-2 has it, of ``size`` tokens, learned from a sample."""
    module = package()
    level = module.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made = module.Tokenizer(module.models.BPE())
    made.pre_tokenizer = level
    made.decoder = module.decoders.ByteLevel()
    trainer = module.trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=sorted(level.alphabet()),  # as it comes, in the order of a hash
    )
    made.train_from_iterator(sample(text, limit), trainer)
    return made


def encode(tokenizer: Any, text: bytes) -> Tensor:
    """The numbers of all tokens, int16; pieces are encoded on all cores at once."""
    made: list[Tensor] = []
    batch: list[str] = []

    def flush() -> None:
        found = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        made.extend(torch.tensor(x.ids, dtype=torch.int16) for x in found)
        batch.clear()

    for piece in pieces(text):
        batch.append(piece)
        if len(batch) == BATCH:
            flush()
    flush()
    return torch.cat(made)


def lengths(tokenizer: Any) -> Tensor:
    """Bytes of each token: byte-level BPE writes every byte as one character."""
    names = (tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size()))
    return torch.tensor([len(name) for name in names], dtype=torch.int16)


def _settings(size: int, limit: int) -> dict[str, Any]:
    return {
        "package": f"tokenizers {package().__version__}",
        "model": "byte-level BPE, the pattern of GPT-2, no special tokens",
        "vocabulary": size,
        "sample_bytes": limit,
        "piece_bytes": PIECE,
    }


def tokenized(
    text: Text, size: int, cache: Path, vocabulary_of: Text | None = None, limit: int = SAMPLE
) -> Text:
    """``text`` as tokens, from the cache where it was made before.

    vocabulary_of: the text whose tokenizer is taken (default: its own).
    """
    base = vocabulary_of or text
    settings = {**_settings(size, limit), "trained_on": base.digest}
    key = hashlib.sha256(json.dumps([settings, text.digest]).encode()).hexdigest()[:16]
    path = cache / f"tokens_{text.kind}_{key}.pt"
    if not path.exists():
        _make(text, base, size, limit, path)
    kept = torch.load(path)
    facts = {**settings, "sha256": kept["sha256"]}
    for side in ("train", "held_out"):
        facts[f"{side}_tokens"] = len(kept[side])
    return replace(
        text,
        train=kept["train"],
        held_out=kept["held_out"],
        lengths=kept["lengths"],
        tokenizer=facts,
    )


def _make(text: Text, base: Text, size: int, limit: int, path: Path) -> None:
    """Train, encode, write whole: the vocabulary as JSON beside the tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = train(bytes(base.train.numpy()), size, limit)
    written = tokenizer.to_str()
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "train": encode(tokenizer, bytes(text.train.numpy())),
            "held_out": encode(tokenizer, bytes(text.held_out.numpy())),
            "lengths": lengths(tokenizer),
            "sha256": hashlib.sha256(written.encode()).hexdigest(),
        },
        partial,
    )
    path.with_suffix(".json").write_text(written, "utf-8")
    partial.rename(path)
