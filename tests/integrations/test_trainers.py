"""Other libraries' trainers, each against the real package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import nn

import signconv
from signconv.runtime.wrapped import unwrapped
from signconv.verification.bits import different
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "examples"))


def stepped(**options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 4))
    optimizer = AdamWStoSign(model.parameters(), seed=1, **options)
    model(torch.randn(8, 64)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def test_rows_have_the_names_of_the_model() -> None:
    model, optimizer = stepped()
    names = {r.parameter for r in signconv.inspect(optimizer, model).rows}
    assert names == {n for n, _ in model.named_parameters()}


def test_metrics_of_a_trainer() -> None:
    """Means over all parameters, and the parameters where a share is largest."""
    from signconv.integrations.health import metrics

    model, optimizer = stepped()
    with torch.no_grad():
        optimizer.state[model[1].weight]["m"][:, :16] = 0
    metrics(optimizer, model)
    model(torch.randn(8, 64)).square().mean().backward()
    found = metrics(optimizer, model, most=1)
    assert found["signconv/zero/m/1.weight"] == pytest.approx(0.5, abs=0.1)
    assert 0 < found["signconv/zero/m"] < 0.1
    assert sum(k.startswith("signconv/zero/m/") for k in found) == 1
    assert found["signconv/nonfinite/v"] == 0 and found["signconv/state_bytes"] > 2 * 32 * 64
    assert all(isinstance(v, float) for v in found.values())


def test_wrapped_optimizers_are_looked_into() -> None:
    _, optimizer = stepped()

    class Wrapper:
        def __init__(self, inner: Any) -> None:
            self.optimizer = inner

        @property
        def param_groups(self) -> Any:
            return self.optimizer.param_groups

    assert unwrapped(Wrapper(Wrapper(optimizer)), "this") is optimizer
    assert signconv.inspect(Wrapper(optimizer)).rows
    signconv.gradient_release(Wrapper(optimizer)).remove()
    with pytest.raises(TypeError, match=r"not Wrapper \[SC431\]"):
        signconv.inspect(Wrapper(torch.optim.AdamW([torch.zeros(2)])))


@pytest.mark.integration
def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, optimizer = stepped()
    accelerator = accelerate.Accelerator(cpu=True)
    model, wrapped = accelerator.prepare(model, optimizer)
    assert type(wrapped) is not AdamWStoSign
    accelerator.backward(model(torch.randn(8, 64)).square().mean())
    wrapped.step()
    assert signconv.inspect(wrapped, model).optimizer == "AdamWStoSign"


@pytest.mark.integration
def test_health_in_the_log_of_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from hf_trainer import make_trainer

    from signconv.integrations.transformers import HealthCallback

    trainer = make_trainer(tmp_path, steps=6)
    trainer.add_callback(HealthCallback(every=2))
    trainer.train()
    logged = [x for x in trainer.state.log_history if "signconv/zero/m" in x]
    assert len(logged) >= 3
    named = {k.rpartition("/")[2] for x in logged for k in x if k.startswith("signconv/stalled/")}
    assert any(n.endswith("wte.weight") for n in named), named


@pytest.mark.integration
def test_health_in_the_loggers_of_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    import lightning.pytorch as pl

    from signconv.integrations.lightning import HealthCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(64, 32)

        def training_step(self, batch: Any) -> Any:
            return self.layer(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return AdamWStoSign(self.parameters(), lr=1e-2, seed=0)

    data = torch.utils.data.DataLoader(torch.randn(32, 64), batch_size=8)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=str(tmp_path),
        callbacks=[HealthCallback(every=2)],
    )  # fmt: skip
    trainer.fit(Module(), data)
    assert "signconv/zero/m" in trainer.callback_metrics
    assert trainer.callback_metrics["signconv/state_bytes"] > 0


@pytest.mark.integration
def test_timm_makes_them_by_name() -> None:
    """Through its factory: no decay on vectors, its names, and the same steps."""
    timm: Any = pytest.importorskip("timm.optim")
    models_of: Any = pytest.importorskip("timm.models")
    from signconv.integrations.timm import register

    names = register()
    assert "signconv-adamw-stosign" in names and "signconv-s3" in names
    assert "signconv-adamw-stosign" in timm.list_optimizers()
    torch.manual_seed(0)
    models = [models_of.create_model("resnet10t", num_classes=4) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first = timm.create_optimizer_v2(
        models[0], opt="signconv-adamw-stosign", lr=1e-2, weight_decay=0.05, seed=3
    )
    assert type(first) is AdamWStoSign
    decays = {g["weight_decay"] for g in first.param_groups}
    assert decays == {0.0, 0.05}
    order = {n: p for n, p in models[0].named_parameters()}
    groups = [
        {
            "params": [
                dict(models[1].named_parameters())[next(n for n, q in order.items() if q is p)]
                for p in g["params"]
            ],
            "weight_decay": g["weight_decay"],
        }
        for g in first.param_groups
    ]
    second = AdamWStoSign(groups, lr=1e-2, seed=3)
    x = torch.randn(4, 3, 64, 64)
    for model, optimizer in zip(models, (first, second), strict=True):
        model.train()
        model(x).square().mean().backward()
        optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert different(p, q) == 0
    for name in names:  # every one can be made
        timm.create_optimizer_v2(nn.Linear(4, 4), opt=name, lr=1e-3)
