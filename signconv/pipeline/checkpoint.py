"""``signconv convert-state``: an optimizer's saved state as another optimizer's, file to file."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from signconv.errors import CheckpointError
from signconv.pipeline.classes import compile
from signconv.pipeline.files import UNFINISHED
from signconv.runtime.exchange import MEANINGS, found_in
from signconv.runtime.optimizer import FusedOptimizer


class Target(NamedTuple):
    """What a state is converted to or from: a spec with its passes and storage."""

    spec: str
    convert: str | None = None
    state: str | None = None


def convert_state(
    source: Path,
    target: Path,
    to: Target,
    of: Target | None = None,
    key: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[str, int]:
    """Read ``source``, write ``target``; returns the name of what was written, and of how many
    parameters it holds state.

    to: the optimizer that is to load it, "torch" for torch.optim's keys.  of: the optimizer of this
    library that wrote it; None for others' (``FusedOptimizer.load_moments``).  key: under which a
    training checkpoint holds the optimizer's state_dict.  dtype: of the parameters.
    Raises CheckpointError or ValueError, with nothing written.
    """
    saved = _read(source, key)
    if of is None and any("program" in g for g in saved["param_groups"]):
        raise CheckpointError(
            "SC723", f"{source} was written by an optimizer of signconv: name it with --from"
        )
    shapes = {k: _shape(entry, source) for k, entry in saved["state"].items()}
    name, made = _converted(saved, shapes, source, to, of, dtype)
    _write(made, target)
    return name, len(made["state"])


def _converted(
    saved: Mapping[str, Any],
    shapes: Mapping[Any, torch.Size],
    source: Path,
    to: Target,
    of: Target | None,
    dtype: torch.dtype,
) -> tuple[str, dict[str, Any]]:
    given: Any = saved
    if of is not None:
        storage = of.state or str(saved["param_groups"][0].get("format", "fp8"))
        given = _optimizer(Target(of.spec, of.convert, storage), saved, shapes, dtype)
        given.load_state_dict(saved)
    if to.spec == "torch":
        return "torch.optim", _in_torch(given, source)
    optimizer = _optimizer(to, saved, shapes, dtype)
    optimizer.load_moments(given)
    return type(optimizer).__name__, optimizer.state_dict()


def _in_torch(given: Any, source: Path) -> dict[str, Any]:
    if not isinstance(given, FusedOptimizer):
        raise CheckpointError(
            "SC723", f"{source}: --to torch takes what signconv wrote, named with --from"
        )
    return given.torch_state_dict()


def _read(source: Path, key: str | None) -> Mapping[str, Any]:
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(
            "SC722", f"cannot read {source}: {error.strerror or error}"
        ) from error
    except Exception as error:
        raise CheckpointError(
            "SC722",
            f"{source} is no checkpoint of plain tensors ({str(error).splitlines()[0][:120]}): "
            "save what torch.load(weights_only=True) reads, or call load_moments in Python",
        ) from error
    here = loaded.get(key) if key and isinstance(loaded, Mapping) else loaded
    if not isinstance(here, Mapping) or not {"state", "param_groups"} <= here.keys():
        keys = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        where = f"under {key!r} in {source}" if key else f"in {source}"
        raise CheckpointError(
            "SC722",
            f"no optimizer's state_dict {where}, which has: {keys or 'nothing'}; name its key "
            "with --key",
        )
    return here


def _shape(entry: Mapping[str, Any], source: Path) -> torch.Size:
    """A parameter's, by its state; of no state 0."""
    found = {**entry, **entry.get("__bnb_optimizer_quant_state__", {})}
    for name in (*MEANINGS, "momentum_buffer", "state1"):
        if isinstance(found.get(name), torch.Tensor):
            return torch.Size(found[name].shape)
    if any(n.endswith("::quantized") for n in found):
        return next(iter(found_in(entry, {}).values())).shape
    scaled = {n.removesuffix("_scale") for n in found if n.endswith("_scale")}
    whole = [
        x.shape
        for n, x in found.items()
        if isinstance(x, torch.Tensor) and x.dim() and n not in ("master", "master_check")
        and not n.endswith("_scale")
        and (n not in scaled or not _packed(x, found[f"{n}_scale"]))
    ]  # fmt: skip
    if whole:
        return torch.Size(whole[0])
    if not any(isinstance(x, torch.Tensor) and x.dim() for x in found.values()):
        return torch.Size([0])
    raise CheckpointError(
        "SC724",
        f"{source}: 4-bit state does not say its parameter's shape: load it into its optimizer in "
        "Python and call torch_state_dict or load_moments there",
    )


def _packed(codes: torch.Tensor, scale: torch.Tensor) -> bool:
    """Whether a block of 32 has 16 bytes."""
    blocks = -(-codes.numel() // (codes.shape[0] if codes.dim() > 1 else 1) // 32)
    return blocks < scale.shape[-1]


def _optimizer(
    which: Target,
    saved: Mapping[str, Any],
    shapes: Mapping[Any, torch.Size],
    dtype: torch.dtype,
) -> FusedOptimizer:
    cls = compile(which.spec, convert=which.convert, state=which.state or "fp8")
    groups = [
        {
            "params": [
                torch.nn.Parameter(torch.zeros(shapes.get(k, (0,)), dtype=dtype))
                for k in group["params"]
            ]
        }
        for group in saved["param_groups"]
    ]
    return cls(groups, backend="reference")


def _write(made: Mapping[str, Any], target: Path) -> None:
    """Whole or not at all."""
    temporary = target.parent / f".{target.name[:200]}.{secrets.token_hex(8)}{UNFINISHED}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(made), temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(
            "SC725", f"cannot write {target}: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
