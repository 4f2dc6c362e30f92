"""A small transformer in each trainer: accumulation, clipping, evaluation, and a resume in
mid-epoch from the trainer's own checkpoint, bit for bit what an uninterrupted run gives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw_fp4 import AdamWFP4
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.generated.schedulefree_adamw import ScheduleFreeAdamW
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import signconv
from signconv.verification.bits import different
from tests.support import ROOT

sys.path.insert(0, str(ROOT / "examples"))
from tiny_lm import TinyLM

pytestmark = pytest.mark.integration


def mixed(params: Any, **options: Any) -> Any:
    """A hybrid, in the place of a class."""
    params = [*params]
    wide, thin = [p for p in params if p.dim() > 1], [p for p in params if p.dim() < 2]
    return signconv.hybrid(AdamWFP4(wide, **options), AdamWStoSign(thin, **options))


every = pytest.mark.parametrize("cls", [AdamWStoSign, AdamWFP4], ids=lambda c: c.__name__)
every_and_mixed = pytest.mark.parametrize(
    "cls", [AdamWStoSign, AdamWFP4, mixed], ids=lambda c: c.__name__
)
CONTEXT, ROWS, BATCH, ACCUMULATE = 16, 24, 2, 2
UPDATES, HALFWAY = 9, 4  # an epoch has six updates: both ends lie within one


class Text(Dataset[dict[str, Tensor]]):
    """Sequences that count up, which a model learns in a few steps."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        tokens = (torch.arange(CONTEXT + 1) * (1 + i % 3) + i) % 256
        return {"input_ids": tokens[:-1], "labels": tokens[1:]}


class Resumable(DataLoader[dict[str, Tensor]]):
    """Goes on behind the batches that were seen, as Lightning asks of a loader for that."""

    seen = 0

    def __iter__(self) -> Any:
        first, self.seen = self.seen, 0
        for i, batch in enumerate(super().__iter__()):
            if i >= first:
                self.seen = i + 1
                yield batch
        self.seen = 0

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


class Model(nn.Module):
    """The examples' transformer as trainers call it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyLM(width=32, layers=1, heads=2, hidden=64)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.net.loss(input_ids, labels)}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts of tensors hold equal bits."""
    return a.keys() == b.keys() and all(different(a[k], b[k]) == 0 for k in a)


def result(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Parameters and moments by name."""
    made = {n: p.detach().clone() for n, p in model.named_parameters()}
    for n, p in model.named_parameters():
        for key, x in optimizer.state.get(p, {}).items():
            made[f"{n}/{key}"] = x.clone()
    return made


def learned(losses: list[float]) -> bool:
    return losses[-1] < losses[0] - 0.3


# ---------------------------------------------------------------- Hugging Face


@pytest.mark.parametrize(
    "cls", [AdamWStoSign, AdamWFP4, ScheduleFreeAdamW, mixed], ids=lambda c: c.__name__
)
def test_trainer(cls: Any, tmp_path: Path) -> None:
    """Of Schedule-Free the checkpoint is saved after an evaluation, whose point is another."""
    transformers = pytest.importorskip("transformers")

    def run(folder: Path, updates: int, resume: str | None = None) -> Any:
        torch.manual_seed(0)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), use_cpu=True, seed=1, max_steps=updates, save_steps=HALFWAY,
            per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATE,
            max_grad_norm=1.0, eval_strategy="steps", eval_steps=HALFWAY, logging_steps=1,
            report_to=[], lr_scheduler_type="constant", disable_tqdm=True, save_strategy="steps",
        )  # fmt: skip
        model, options = Model(), {"lr": 1e-2, "seed": 3}
        made: dict[str, Any] = {"optimizer_cls_and_kwargs": (cls, options)}
        if cls is mixed:
            made = {"optimizers": (mixed(model.parameters(), **options), None)}
        trainer = transformers.Trainer(
            model, arguments, train_dataset=Text(), eval_dataset=Text(), **made
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole", UPDATES)
    run(tmp_path / "half", HALFWAY)
    checkpoint = str(tmp_path / "half" / f"checkpoint-{HALFWAY}")
    again = run(tmp_path / "again", UPDATES, checkpoint)
    ends = [result(x.model, x.optimizer.optimizer) for x in (again, whole)]
    assert same(*ends)
    log = whole.state.log_history
    assert learned([x["loss"] for x in log if "loss" in x])
    assert sum("eval_loss" in x for x in log) == 3 and any("grad_norm" in x for x in log)


@every_and_mixed
def test_accelerate(cls: Any, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")

    def run(updates: int, resume: bool) -> tuple[dict[str, Tensor], list[float]]:
        torch.manual_seed(0)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
        model = Model()
        optimizer = cls(model.parameters(), lr=1e-2, seed=3)
        loader = DataLoader(Text(), BATCH, shuffle=False)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        done, losses = 0, []
        if resume:
            accelerator.load_state(str(tmp_path / "saved"))
            done = HALFWAY
        while done < updates:
            seen = done * ACCUMULATE % len(loader)
            for batch in accelerator.skip_first_batches(loader, seen):
                with accelerator.accumulate(model):
                    loss = model(**batch)["loss"]
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                losses.append(float(loss.detach()))
                done += bool(accelerator.sync_gradients)
                if done == updates:
                    break
        if updates == HALFWAY:
            accelerator.save_state(str(tmp_path / "saved"))
        return result(model, optimizer.optimizer), losses

    whole, losses = run(UPDATES, False)
    run(HALFWAY, False)
    again, _ = run(UPDATES, True)
    assert same(again, whole) and learned(losses)


# ---------------------------------------------------------------- Lightning


@every_and_mixed
def test_lightning(cls: Any, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    losses: list[float] = []

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = Model()

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            loss = self.model(**batch)["loss"]
            losses.append(float(loss.detach()))
            return loss

        def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
            self.log("held_out", self.model(**batch)["loss"])

        def configure_optimizers(self) -> Any:
            return cls(self.parameters(), lr=1e-2, seed=3)

    def run(updates: int, resume: str | None = None) -> Any:
        torch.manual_seed(0)
        module = Module()
        trainer = lightning.Trainer(
            max_steps=updates, accelerator="cpu", accumulate_grad_batches=ACCUMULATE,
            gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(tmp_path),
            use_distributed_sampler=False,
        )  # fmt: skip
        loader = Resumable(Text(), BATCH, shuffle=False)
        trainer.fit(module, loader, DataLoader(Text(), BATCH), ckpt_path=resume)
        return trainer, module

    trainer, module = run(UPDATES)
    whole = result(module, trainer.optimizers[0])
    assert learned(losses) and "held_out" in trainer.callback_metrics
    trainer, _ = run(HALFWAY)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer, module = run(UPDATES, str(tmp_path / "half.ckpt"))
    again = result(module, trainer.optimizers[0])
    assert same(again, whole)


@every
def test_fabric(cls: type, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    def batches(first: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        every = [*DataLoader(Text(), BATCH, shuffle=False)]
        for i in range(first, UPDATES * ACCUMULATE):
            yield i, every[i % len(every)]

    def run(updates: int, resume: bool) -> tuple[dict[str, Tensor], list[float]]:
        torch.manual_seed(0)
        fabric = lightning.Fabric(accelerator="cpu")
        fabric.launch()
        model = Model()
        model, optimizer = fabric.setup(model, cls(model.parameters(), lr=1e-2, seed=3))
        state = {"model": model, "optimizer": optimizer, "done": 0}
        if resume:
            fabric.load(tmp_path / "half.ckpt", state)
        losses = []
        for i, batch in batches(state["done"] * ACCUMULATE):
            last = i % ACCUMULATE == ACCUMULATE - 1
            with fabric.no_backward_sync(model, enabled=not last):
                loss = model(**batch)["loss"]
                fabric.backward(loss)
            losses.append(float(loss.detach()))
            if last:
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                optimizer.step()
                optimizer.zero_grad()
                state["done"] += 1
            if state["done"] == updates:
                break
        if updates == HALFWAY:
            fabric.save(tmp_path / "half.ckpt", state)
        return result(model, optimizer.optimizer), losses

    whole, losses = run(UPDATES, False)
    run(HALFWAY, False)
    again, _ = run(UPDATES, True)
    assert same(again, whole) and learned(losses)


# ---------------------------------------------------------------- thin matrices, and names


@every
def test_lora(cls: type, tmp_path: Path) -> None:
    """Frozen weights have no state; rank-8 matrices keep few bits; adapters save and load."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, target_modules=["qkv", "mlp_in"])
    net = TinyLM(width=32, layers=1, heads=2, hidden=64)
    model = peft.get_peft_model(net, config)
    optimizer = cls(model.parameters(), lr=1e-2, seed=3)
    losses = []
    for batch in (*DataLoader(Text(), BATCH), *DataLoader(Text(), BATCH)):
        loss = net.loss(batch["input_ids"], batch["labels"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert set(optimizer.state) == set(trained) and losses[-1] < losses[0]
    size = sum(x.numel() for p in trained for x in optimizer.state[p].values() if x.dim())
    most = 2.6 if cls is AdamWStoSign else 1.4
    assert size / sum(p.numel() for p in trained) < most, "bytes per trained parameter"
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.manual_seed(0)
    fresh = peft.PeftModel.from_pretrained(
        TinyLM(width=32, layers=1, heads=2, hidden=64), tmp_path, is_trainable=True
    )
    again = cls(fresh.parameters(), lr=1e-2, seed=3)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert same(result(fresh, again), result(model, optimizer))


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.optim import create_optimizer_v2
    from timm.utils import CheckpointSaver  # noqa: F401  (what its script saves with)

    from signconv.integrations.timm import register

    register()
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % 4

    def run(updates: int, saved: dict[str, Any] | None) -> tuple[Any, Any, list[float], int]:
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, depth=1)
        optimizer = create_optimizer_v2(
            model, opt="signconv-adamw-stosign", lr=1e-3, weight_decay=0.05
        )
        done, losses = 0, []
        if saved:
            model.load_state_dict(saved["state_dict"])
            optimizer.load_state_dict(saved["optimizer"])
            done = HALFWAY
        while done < updates:
            for half in (slice(0, 4), slice(4, 8)):  # accumulated
                loss = nn.functional.cross_entropy(model(images[half]), labels[half])
                (loss / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            done += 1
        return model, optimizer, losses, done

    model, optimizer, losses, _ = run(UPDATES, None)
    half, stopped, _, _ = run(HALFWAY, None)
    torch.save({"state_dict": half.state_dict(), "optimizer": stopped.state_dict()}, tmp_path / "x")
    again, resumed, _, _ = run(UPDATES, torch.load(tmp_path / "x", weights_only=True))
    assert same(result(again, resumed), result(model, optimizer)) and learned(losses)
