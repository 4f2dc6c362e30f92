"""Rows of optimizers whose updates are matrix signs, part of ``table.AGREES``."""

from __future__ import annotations

from typing import Any

from .compare import SHAPES
from .row import Row

#: What Muon and its relatives are compared on; the collection steps vectors by AdamW.
MATRICES = (SHAPES[0], SHAPES[2])
MUON: dict[str, Any] = {"group": {"use_muon": True}, "shapes": MATRICES}
PRODUCTS = "Products of matrix signs in float64 in place of bf16."
OF_MATRICES = "Matrices alone; the collection steps vectors by AdamW. "

MATRIX: dict[str, Row] = {
    "adago": Row(
        "matrix.py:AdaGO",
        {"lr": 0.3, "gamma": 7.0, "v0": 0.5, "eps": 2e-3},
        {"v0": None, "v": 0.5},
        OF_MATRICES + PRODUCTS,
        **MUON,
    ),
    "adamuon": Row(
        "matrix.py:AdaMuon",
        {"beta2": 0.9},
        note="Of the momentum itself; the paper and `adamuon` in the catalogue take its signs "
        "first. " + OF_MATRICES + PRODUCTS,
        **MUON,
    ),
    "distributedmuon": Row(
        "muon",
        {"weight_decay": 0.2},
        note=OF_MATRICES + PRODUCTS + " In a process group of one.",
        distributed=True,
        **MUON,
    ),
    "muon": Row("muon", {"weight_decay": 0.2}, note=OF_MATRICES + PRODUCTS, **MUON),
    "muonclip": Row(
        "matrix.py:MuonClip",
        {"qk_clip_threshold": 1.5, "exponent": 0.3},
        {"exponent": None, "qk_clip_alpha": 0.3},
        OF_MATRICES + PRODUCTS + " A query, a key and a convolution, which is neither; every row "
        "is a head, and the same largest logits are passed to both, in every third step. The "
        "collection takes their powers in float32.",
        tolerance=1e-6,
        by_shape={(4, 5): {"exponent": 0.7}, SHAPES[2]: {"exponent": 0.0}},
        groups={
            SHAPES[0]: {"use_muon": True, "qk_clip": "query", "attention_name": "0"},
            (4, 5): {"use_muon": True, "qk_clip": "key", "attention_name": "1"},
            SHAPES[2]: {"use_muon": True},
        },
        shapes=(SHAPES[0], (4, 5), SHAPES[2]),
        every=3,
        asked=lambda tensors: {
            "attention_max_logits": {str(i): x.amax(1) for i, x in enumerate(tensors[:2])}
        },
    ),
    "normuon": Row(
        "matrix.py:NorMuon",
        {"beta2": 0.9},
        note="Keeps the norm (`update_scale`), the default; `normuon` in the catalogue has the "
        "paper's. " + OF_MATRICES + PRODUCTS,
        **MUON,
    ),
    "scion": Row(
        "matrix.py:SCION",
        {"momentum": 0.3, "scale": 1.5, "kernel": 4.0},
        {"kernel": None},
        "The norm by shape (`LMONorm.AUTO`, the default); the number of a kernel's elements, which "
        "the collection takes from the shape, is given by param group. " + PRODUCTS,
        by_shape={SHAPES[0]: {"kernel": 1.0}},
    ),
    "scionlight": Row(
        "matrix.py:SCIONLight",
        {"momentum": 0.3, "scale": 1.5, "kernel": 4.0, "weight_decay": 1.0},
        {"kernel": None, "weight_decay": None, "constraint": True},
        "As SCION, and constrained: a weight decay of 1 here. Gradients are added to what the "
        "collection keeps in their buffers. " + PRODUCTS,
        by_shape={SHAPES[0]: {"kernel": 1.0}},
        accumulated=True,
    ),
}
