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
from signconv.runtime.foreign import MEANINGS
from signconv.runtime.formats import MASTER
from signconv.runtime.optimizer import FusedOptimizer

#: Elements that a parameter of unknown size has room for.
UNKNOWN = 1 << 40


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
    name, made = _converted(saved, source, to, of, dtype)
    _write(made, target)
    return name, len(made["state"])


def _converted(
    saved: Mapping[str, Any], source: Path, to: Target, of: Target | None, dtype: torch.dtype
) -> tuple[str, dict[str, Any]]:
    first = saved["param_groups"][0]
    given: Any = saved
    master = None
    if of is None:
        shapes = {k: _shape(entry) for k, entry in saved["state"].items()}
    else:
        cls = compile(
            of.spec, convert=of.convert, state=of.state or str(first.get("format", "fp8"))
        )
        shapes = {k: _own_shape(cls, entry, source) for k, entry in saved["state"].items()}
        if any(MASTER in entry for entry in saved["state"].values()):
            master, dtype = "split", torch.bfloat16
        given = _over(cls, saved, shapes, dtype, master)
        given.load_state_dict(saved)
    if to.spec == "torch":
        return "torch.optim", _in_torch(given, source)
    cls = compile(to.spec, convert=to.convert, state=to.state or "fp8")
    optimizer = _over(cls, saved, shapes, dtype, master)
    optimizer.load_moments(given)
    made = optimizer.state_dict()
    _make_room(made, shapes)
    return cls.__name__, made


def _make_room(made: Mapping[str, Any], shapes: Mapping[Any, torch.Size]) -> None:
    """Parameters without state have sizes that nobody knows: what comes behind them draws its
    random numbers so much further on that they cannot meet."""
    unknown = 0
    for number in (k for g in made["param_groups"] for k in g["params"]):
        if number in made["state"]:
            made["state"][number]["offset"] += unknown * UNKNOWN
        elif number not in shapes or not shapes[number].numel():
            unknown += 1


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
    here: Any = loaded
    if key and isinstance(loaded, Mapping):
        here = loaded.get(key)
    if not _state_dict(here):
        keys = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        where = f"under {key!r} in {source}" if key else f"in {source}"
        raise CheckpointError(
            "SC722",
            f"no optimizer's state_dict {where}, which has: {keys or 'nothing'}; name its key "
            "with --key",
        )
    return here


def _state_dict(x: Any) -> bool:
    """Whether it is an optimizer's, as torch keeps it."""
    if not isinstance(x, Mapping) or not {"state", "param_groups"} <= x.keys():
        return False
    groups, state = x["param_groups"], x["state"]
    return (
        isinstance(groups, list)
        and len(groups) > 0
        and all(isinstance(g, Mapping) and "params" in g for g in groups)
        and isinstance(state, Mapping)
        and all(isinstance(e, Mapping) for e in state.values())
    )


def _shape(entry: Mapping[str, Any]) -> torch.Size:
    """A parameter's, by what another optimizer keeps for it; of no state 0."""
    found = {**entry, **entry.get("__bnb_optimizer_quant_state__", {})}
    for name in (*MEANINGS, "momentum_buffer", "state1"):
        if isinstance(found.get(name), torch.Tensor):
            return torch.Size(found[name].shape)
    quantized = [x.shape for n, x in found.items() if n.endswith("::quantized")]
    return torch.Size(quantized[0] if quantized else [0])


def _own_shape(cls: Any, entry: Mapping[str, Any], source: Path) -> torch.Size:
    """A parameter's, by what an optimizer of ours keeps for it."""
    for m in cls.program.moments:
        if not m.stored.packed and isinstance(entry.get(m.name), torch.Tensor):
            return torch.Size(entry[m.name].shape)
    kept = "state of rows and columns" if cls.program.kept else "4-bit state"
    raise CheckpointError(
        "SC724",
        f"{source}: {kept} does not say its parameter's shape: load it into its optimizer in "
        "Python and call torch_state_dict or load_moments there",
    )


def _over(
    cls: Any,
    saved: Mapping[str, Any],
    shapes: Mapping[Any, torch.Size],
    dtype: torch.dtype,
    master: str | None,
) -> FusedOptimizer:
    """An optimizer over parameters of these shapes, in the groups of the checkpoint, with its
    seed."""
    groups = [
        {
            "params": [
                torch.nn.Parameter(torch.zeros(shapes.get(k, (0,)), dtype=dtype))
                for k in group["params"]
            ]
        }
        for group in saved["param_groups"]
    ]
    seed = saved["param_groups"][0].get("seed", 0)
    made: FusedOptimizer = cls(groups, backend="reference", seed=seed, master=master)
    return made


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
