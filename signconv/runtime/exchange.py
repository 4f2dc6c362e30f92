"""Moments in and out: from the optimizers that people come from, between our own, and to torch.

A moment is known by what it is (``MomentSlot.of``), not by its name: torch's ``exp_avg`` is
``ema(g)``, its ``exp_avg_sq`` ``ema(g**2)``.  It is encoded by the rounding of a step, unbiased and
the same on every number of ranks; step counts and hyperparameters are taken over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from signconv.runtime import mesh, sharded
from signconv.runtime import state as states
from signconv.runtime.errors import coded
from signconv.runtime.program import OptimizerProgram, pitch_of, row_length
from signconv.runtime.reference import ops

if TYPE_CHECKING:
    from signconv.runtime.optimizer import FusedOptimizer

#: torch.optim's key -> what it is.
MEANINGS = {"exp_avg": "ema(g)", "exp_avg_sq": "ema(g**2)", "max_exp_avg_sq": "max(ema(g**2))"}
_KEYS = {of: key for key, of in MEANINGS.items()}
#: bitsandbytes keeps its tensors in a dictionary of their own in state_dicts.
_BNB = "__bnb_optimizer_quant_state__"
#: Elements per block scale of bitsandbytes, today's first.
_BNB_BLOCKS = (256, 2048, 4096)
#: FlashOptim's compressed checkpoints: largest code, whether of a root, whether bent by softsign.
_FLASH = {"exp_avg": (127.0, False, True), "exp_avg_sq": (255.0, True, False)}
_FLASH_GROUP = 32


# ---------------------------------------------------------------- reading


def found_in(entry: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """Meaning -> fp32 tensor (or DTensor) of what another optimizer's state of a parameter holds.

    Known are the keys of torch.optim, torchao (whose tensors know how to be dequantized),
    FlashOptim and bitsandbytes.
    """
    entry = {**entry, **entry.get(_BNB, {})}
    found: dict[str, Any] = {}
    for key, of in MEANINGS.items():
        if f"{key}::quantized" in entry and key in _FLASH:
            found[of] = _flash(key, entry)
        elif isinstance(entry.get(key), Tensor):
            found[of] = _fp32(entry[key])
    if isinstance(entry.get("momentum_buffer"), Tensor):
        found["ema(g)"] = _fp32(entry["momentum_buffer"]) * _sum_to_average(group)
    for i in ("1", "2"):
        if isinstance(entry.get(f"state{i}"), Tensor):
            x = _bitsandbytes(entry, i)
            momentum = i == "1" and _is_momentum(group)
            found["ema(g)" if i == "1" else "ema(g**2)"] = (
                x * _sum_to_average(group) if momentum else x
            )
    return found


def _fp32(x: Any) -> Any:
    """Of a tensor of any kind."""
    if hasattr(x, "dequantize") and type(x) not in (Tensor, torch.nn.Parameter):
        part = mesh.local(x) if mesh.is_sharded(x) else x
        if hasattr(part, "codes"):  # torchao's
            x = x.dequantize()
    return x.detach().to(torch.float32)


def _momentum(group: Mapping[str, Any]) -> float:
    if "momentum" in group:
        return float(group["momentum"])
    return float(group["betas"][0])


def _is_momentum(group: Mapping[str, Any]) -> bool:
    """Whether a group of bitsandbytes belongs to SGD, whose second beta is 0."""
    betas = group.get("betas")
    return "momentum" in group or (betas is not None and float(betas[1]) == 0.0)


def _sum_to_average(group: Mapping[str, Any]) -> float:
    """torch.optim.SGD adds (1 - dampening)·g where an average adds (1 - momentum)·g."""
    kept = 1.0 - float(group.get("dampening", 0.0))
    return (1.0 - _momentum(group)) / kept if kept else 1.0


def _bitsandbytes(entry: Mapping[str, Any], i: str) -> Tensor:
    """Codes in a table of 256 numbers, times a scale per block."""
    codes = entry[f"state{i}"]
    if codes.dtype != torch.uint8:
        return _fp32(codes)
    table, scale = entry[f"qmap{i}"], entry.get(f"absmax{i}")
    if scale is None:
        raise coded(
            ValueError,
            "SC511",
            "bitsandbytes state without block scales (absmax) was written with block_wise=False, "
            "whose scales are of another kind: load it there with block_wise=True first",
        )
    flat = table.to(codes.device)[codes.reshape(-1).long()].float()
    sizes = [n for n in _BNB_BLOCKS if -(-flat.numel() // n) == scale.numel()]
    if not sizes:
        raise coded(
            ValueError,
            "SC511",
            f"bitsandbytes state of {flat.numel()} elements has {scale.numel()} block scales: that "
            f"is none of the known block sizes {', '.join(map(str, _BNB_BLOCKS))}",
        )
    each = scale.to(flat.device).float().repeat_interleave(sizes[0])[: flat.numel()]
    return (flat * each).view(codes.shape)


def _flash(key: str, entry: Mapping[str, Any]) -> Tensor:
    """FlashOptim's codes: of blocks of 32, with an fp16 scale, bent or of the square root."""
    largest, root, bent = _FLASH[key]
    codes, scale = entry[f"{key}::quantized"], entry[f"{key}::scales"]
    scale = scale.view(torch.float16) if scale.dtype == torch.bfloat16 else scale
    x = codes.reshape(-1).float() / largest
    if bent:
        x = x / (2.0 - x.abs())
    x = x * scale.reshape(-1).float().repeat_interleave(_FLASH_GROUP)[: x.numel()]
    return (x * x if root else x).view(codes.shape)


# ---------------------------------------------------------------- in


def load(optimizer: FusedOptimizer, source: Any) -> None:
    """``FusedOptimizer.load_moments``."""
    if isinstance(source, torch.optim.Optimizer) and hasattr(source, "program"):
        _load_ours(optimizer, source)
        return
    saved = source.state_dict() if hasattr(source, "state_dict") else source
    name = type(optimizer).__name__
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise coded(
            ValueError,
            "SC501",
            f"{name}.load_moments takes an optimizer or its state_dict: this has no 'state' and "
            "'param_groups'",
        )
    groups, mine = saved["param_groups"], optimizer.param_groups
    sizes, ours = ([len(g["params"]) for g in x] for x in (groups, mine))
    if any("program" in g for g in groups):
        raise coded(
            ValueError,
            "SC512",
            f"{name}.load_moments: this state_dict is of an optimizer of signconv: load_state_dict "
            "takes that of the same program; of another give load_moments the optimizer itself, "
            "after it has loaded it",
        )
    if sizes != ours:
        raise coded(
            ValueError,
            "SC502",
            f"the state_dict has param groups of {sizes} parameters and {name} of {ours}: build "
            "the optimizer with the groups that the other one had",
        )
    work: Work = []
    for group, target in zip(groups, mine, strict=True):
        for key, p in zip(group["params"], target["params"], strict=True):
            entry = saved["state"].get(key)
            if entry:
                # torch's SGD counts no steps: one at least, or an average would begin anew
                work.append((p, found_in(entry, group), entry.get("step", 1), target))
    _put(optimizer, work)
    for group, target in zip(groups, mine, strict=True):
        _take_hypers(optimizer.program, target, group)
    optimizer._settle()


def _load_ours(optimizer: FusedOptimizer, source: Any) -> None:
    """From another optimizer of ours, over the same parameters or others of their shapes."""
    theirs = [g["params"] for g in source.param_groups]
    mine = [g["params"] for g in optimizer.param_groups]
    if [len(x) for x in theirs] != [len(x) for x in mine]:
        raise coded(
            ValueError,
            "SC502",
            f"{type(source).__name__} has param groups of {[len(x) for x in theirs]} parameters "
            f"and {type(optimizer).__name__} of {[len(x) for x in mine]}",
        )
    work: Work = []
    for group, ps, qs in zip(optimizer.param_groups, theirs, mine, strict=True):
        for p, q in zip(ps, qs, strict=True):
            if source.state.get(p):
                held = decoded(source.program, p, source.state[p])
                of = {m.of: held[m.name] for m in source.program.moments if m.of}
                work.append((q, of, source.state[p]["step"], group))
    _put(optimizer, work)
    for target, group in zip(optimizer.param_groups, source.param_groups, strict=True):
        shared = {h.key for h in optimizer.program.hypers} & {h.key for h in source.program.hypers}
        target |= {k: group[k] for k in (*shared, "maximize") if k in group}
    optimizer._settle()


#: A parameter, what was found for it, its step count, and the group that it is in here.
Work = list[tuple[Tensor, dict[str, Any], Any, Mapping[str, Any]]]


def _put(optimizer: FusedOptimizer, work: Work) -> None:
    """State for every parameter: all of it, or an error and none."""
    program, name = optimizer.program, type(optimizer).__name__
    wanted = {m.of for m in program.moments}
    known = {n for n in program.floors}
    lost = [n for n, _ in program.scalar_states if n not in known]
    made: dict[Tensor, dict[str, Tensor]] = {}
    for p, found, step, group in work:
        missing = [m.name for m in program.moments if not m.of or m.of not in found]
        if missing or lost:
            has = ", ".join(sorted(found)) or "no moments"
            needs = ", ".join(f"{m.name} = {m.of or 'its own'}" for m in program.moments)
            raise coded(
                ValueError,
                "SC510",
                f"{name} keeps {needs}{''.join(f', {n}' for n in lost)}, and the other optimizer "
                f"has {has}: {', '.join((*missing, *lost))} cannot be taken from it; start {name} "
                "anew, or take an optimizer with the same averages",
            )
        for of in wanted:
            if found[of].shape != p.shape:
                raise coded(
                    ValueError,
                    "SC507",
                    f"{name}: a parameter has shape {list(p.shape)} and the other optimizer's "
                    f"{of} {list(found[of].shape)}",
                )
        count = states.count(step, p)
        entry = optimizer._new_state(p, group["master"])
        entry["step"] = count
        _encode(program, p, entry, found, group["seed"])
        made[p] = entry
    optimizer._complete(made)


def _encode(
    program: OptimizerProgram,
    p: Tensor,
    entry: dict[str, Tensor],
    found: Mapping[str, Any],
    seed: int,
) -> None:
    """Store what was found, rounded by the random bits of the step that was the last."""
    device = mesh.local(p).device
    for m in program.moments:
        whole = sharded.place(found[m.of].to(torch.float32), p, device)
        here, plain = sharded.readable(p, {"x": whole})
        x = plain["x"].contiguous().view(-1)
        words = ops.draw_words(
            seed,
            int(entry["step"]),
            program.words,
            program.noise,
            _numbers(p, here, int(entry["offset"])),
        )
        states.store(entry, m, p, here, x, words[m.bits.word].field(m.bits.field))


def _numbers(p: Tensor, here: Tensor, offset: int) -> Tensor:
    """Of the elements of ``readable``'s values among all."""
    part = mesh.is_sharded(p) and sharded.on_blocks(p)
    base = offset + (sharded.first_element(p) if part else 0)
    pitch = row_length(p) if part else pitch_of(here, {})
    return ops.element_numbers(base, here.numel(), here.device, max(row_length(here), 1), pitch)


def _take_hypers(
    program: OptimizerProgram, target: dict[str, Any], group: Mapping[str, Any]
) -> None:
    """Learning rate, decay, eps, betas and what else has the same name; keys of the user's own."""
    names = {h.name: h for h in program.hypers}
    given = {k: v for k, v in group.items() if k not in ("params", "betas", "momentum")}
    for key in ("lr", "weight_decay", "eps", "maximize", "initial_lr"):
        if key in given and (key in names or key in ("maximize", "initial_lr")):
            target[key] = given[key]
    betas = group.get("betas")
    if "momentum" in group or (betas is not None and _is_momentum(group)):
        if "momentum" in names:
            target["momentum"] = _momentum(group)
            # The same step: lr times the sum is lr / (1 - momentum) times the average
            target["lr"] = given["lr"] / _sum_to_average(group)
            if "weight_decay" in given:
                target["weight_decay"] = given["weight_decay"] * _sum_to_average(group)
        return
    if betas is None:
        return
    place = {"ema(g)": 0, "ema(g**2)": 1, "max(ema(g**2))": 1}
    if all(m.of in ("ema(g)",) for m in program.moments):  # Lion's average has the second
        place = {"ema(g)": 1}
    if len(betas) == len(target.get("betas", ())) and place.get("ema(g)") == 1:
        target["betas"] = tuple(map(float, betas))
        return
    for m in program.moments:
        hyper = names.get(m.beta)
        if hyper is None or m.of not in place:
            continue
        value = float(betas[place[m.of]])
        if hyper.index is None:
            target[hyper.key] = value
        else:
            old = list(target[hyper.key])
            old[hyper.index] = value
            target[hyper.key] = tuple(old)


# ---------------------------------------------------------------- out


def decoded(program: OptimizerProgram, p: Tensor, entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """fp32 values of a parameter's moments by name, shaped and placed as it is."""
    made = {}
    for m in program.moments:
        names = [n for n in (m.name, f"{m.name}_scale") if n in entry]
        here, plain = sharded.readable(p, {n: entry[n] for n in names})
        x = ops.load_moment(plain[m.name], plain.get(f"{m.name}_scale"), m.stored, here.numel())
        made[m.name] = sharded.place_part(x.view(here.shape), p, p.shape)
    return made


def torch_state(optimizer: FusedOptimizer) -> dict[str, Any]:
    """``FusedOptimizer.torch_state_dict``."""
    program, name = optimizer.program, type(optimizer).__name__
    foreign = [m.name for m in program.moments if m.of not in _KEYS]
    hypers = {h.key for h in program.hypers}
    momentum = "momentum" in hypers
    if foreign or not program.moments:
        raise coded(
            ValueError,
            "SC513",
            f"{name} keeps {', '.join(foreign) or 'no moments'}, for which torch.optim has no key: "
            f"it knows {', '.join(f'{k} = {of}' for k, of in MEANINGS.items())}",
        )
    keys = {m.name: "momentum_buffer" if momentum else _KEYS[m.of] for m in program.moments}
    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    number = 0
    for group in optimizer.param_groups:
        numbers = []
        for p in group["params"]:
            entry = optimizer.state.get(p)
            if entry:
                values = decoded(program, p, entry)
                made = {keys[n]: x for n, x in values.items()}
                if not momentum:
                    made = {"step": torch.tensor(float(entry["step"])), **made}
                state[number] = made
            numbers.append(number)
            number += 1
        groups.append({**_torch_group(program, group, momentum), "params": numbers})
    return {"state": state, "param_groups": groups}


def _torch_group(
    program: OptimizerProgram, group: Mapping[str, Any], momentum: bool
) -> dict[str, Any]:
    kind = torch.optim.SGD if momentum else torch.optim.AdamW
    defaults = kind([torch.empty(1)], lr=1e-3).defaults
    made = {**defaults, **{k: group[k] for k in ("lr", "weight_decay", "eps") if k in group}}
    made["maximize"] = bool(group["maximize"])
    if "initial_lr" in group:
        made["initial_lr"] = group["initial_lr"]
    if momentum:  # the average is the sum that is damped by as much
        made |= {"momentum": group["momentum"], "dampening": group["momentum"]}
        return made
    names = {h.name: h for h in program.hypers}
    betas = [*made["betas"]]
    if len(program.moments) == 1 and "betas" in group:
        made["betas"] = tuple(group["betas"])
        return made
    for m in program.moments:
        if m.beta in names and m.of in ("ema(g)", "ema(g**2)"):
            betas[m.of == "ema(g**2)"] = float(names[m.beta].read(group))
    made["betas"] = tuple(betas)
    made["amsgrad"] = any(m.of == "max(ema(g**2))" for m in program.moments)
    assert all(map(math.isfinite, made["betas"]))
    return made
