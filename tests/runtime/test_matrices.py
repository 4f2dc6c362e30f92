"""Which parameters of a model are matrices for a matrix rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW
from signconv.generated.lion import Lion
from torch import nn

import signconv


def names(found: Any) -> tuple[list[str], list[str]]:
    return [n for n, _ in found[0]], [n for n, p in found[1] if p.dim() > 1]


class Tied(nn.Module):
    """As many positions as the layers are wide; the head has the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(16, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16)])
        self.pool = nn.Linear(16, 16)
        self.generator = nn.Linear(16, 50, bias=False)
        self.generator.weight = self.words.weight
        self.start = nn.Parameter(torch.ones(1, 4, 16))


def test_matrices_of_a_tied_model() -> None:
    model = Tied()
    assert names(signconv.matrices(model)) == (
        ["blocks.0.weight", "pool.weight"],
        ["start", "words.weight", "places.weight"],
    )
    model.pool.weight.requires_grad_(False)
    found = signconv.matrices(model, but="blocks.*.weight")
    assert names(found) == ([], ["start", "words.weight", "places.weight", "blocks.0.weight"])
    untied = Tied()
    untied.generator.weight = nn.Parameter(torch.ones(50, 16))
    assert "generator.weight" in names(signconv.matrices(untied))[1]


def test_matrices_of_torchs_transformer_and_a_convnet() -> None:
    stack = nn.Transformer(32, 2, 1, 1, 64, batch_first=True)
    inside, others = signconv.matrices(stack)
    assert {n.rpartition(".")[2] for n, _ in inside} == {"weight", "in_proj_weight"}
    assert len(inside) == 10 and all(p.dim() == 1 for _, p in others)
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 8, 3))
    net.add_module("norm", nn.BatchNorm2d(8))
    net.add_module("point", nn.Conv2d(8, 8, 1, groups=8))
    net.add_module("classifier", nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
    assert names(signconv.matrices(net)) == (
        ["stem.weight", "classifier.0.weight"],
        ["point.weight", "classifier.2.weight"],
    )


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_matrices_of_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    wide = {"hidden_size": 16, "intermediate_size": 32}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, **ends)
        model, inner, outer = transformers.GPT2LMHeadModel(config), 4, 2
    elif kind == "llama":
        config = transformers.LlamaConfig(**small, **wide, **ends)
        model, inner, outer = transformers.LlamaForCausalLM(config), 7, 2
    else:  # as many positions as it is wide
        config = transformers.BertConfig(**small, **wide, max_position_embeddings=16)
        model, inner, outer = transformers.BertForSequenceClassification(config), 7, 4
    inside, others = names(signconv.matrices(model))
    assert len(inside) == inner and len(others) == outer, (inside, others)
    assert {n.split(".")[-2] for n in others} <= {
        "wte", "wpe", "embed_tokens", "lm_head", "classifier", "word_embeddings",
        "position_embeddings", "token_type_embeddings",
    }  # fmt: skip
    made = signconv.hybrid(*(c(p) for c, p in zip((Lion, AdamW), signconv.matrices(model))))
    assert made.param_groups[0]["param_names"] == inside


def test_a_pattern_that_fits_nothing() -> None:
    with pytest.raises(ValueError, match=r"but='\*router\*' fits none .*SC477"):
        signconv.matrices(nn.Linear(4, 4), but="*router*")
