"""signconv.cast: bf16 parameters, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from signconv.generated.adamw import AdamW
from torch import nn

import signconv


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 32)
        self.norm = nn.LayerNorm(32)
        self.batch = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 8, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("frequencies", torch.rand(16))
        self.count = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    return {k: v.dtype for k, v in model.state_dict().items()}


def test_parameters_are_cast_and_buffers_are_not() -> None:
    model = Tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert signconv.cast(model) is model
    cast = {"embed.weight", "norm.weight", "norm.bias", "head.weight"}
    for name, value in model.state_dict().items():
        wanted = torch.bfloat16 if name in cast else before[name].dtype
        assert value.dtype == wanted, name
        assert torch.equal(value, before[name].to(wanted))
    assert model.head.weight is model.embed.weight
    signconv.cast(model, torch.float32)
    assert dtypes(model) == {k: v.dtype for k, v in before.items()}


@pytest.mark.parametrize(
    "keep", [["*norm*", "head.weight"], lambda name, p: p.dim() < 2 or name == "head.weight"]
)
def test_keep_by_pattern_and_by_function_and_through_a_tie(keep: object) -> None:
    model = Tiny()
    signconv.cast(model, keep=keep)  # type: ignore[arg-type]
    assert model.embed.weight.dtype == torch.float32
    assert model.norm.weight.dtype == torch.float32
    model = Tiny()
    signconv.cast(model, keep="norm.bias")
    assert model.norm.bias.dtype == torch.float32
    assert model.norm.weight.dtype == torch.bfloat16


def test_an_optimizer_made_before_goes_on() -> None:
    model = nn.Linear(32, 8)
    optimizer = AdamW(model.parameters(), backend="reference")
    model(torch.randn(4, 32)).sum().backward()
    signconv.cast(model)
    assert model.weight.grad is not None
    assert model.weight.grad.dtype == torch.bfloat16
    optimizer.step()
    assert model.weight.dtype == torch.bfloat16


def test_a_batch_norm_model_still_runs_in_bf16() -> None:
    model = signconv.cast(nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 2)))
    out = model(torch.randn(4, 32, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    out.sum().backward()


def test_bad_arguments_say_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"torch\.bfloat16 or torch\.float32, not torch\.float16"):
        signconv.cast(Tiny(), torch.float16)
    with pytest.raises(ValueError, match=r"'\*nrm\*' fits none of the model's 7 parameter names"):
        signconv.cast(Tiny(), keep=["*nrm*"])
