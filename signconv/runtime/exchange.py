"""Moments in and out: from the optimizers that people come from, between our own, and to torch.

A moment is known by what it is (``MomentSlot.of``), not by its name: torch's ``exp_avg`` is
``ema(g)``, its ``exp_avg_sq`` ``ema(g**2)``.  It is encoded by the rounding of a step, unbiased and
the same on every number of ranks; step counts and hyperparameters are taken over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from signconv.runtime import axes, mesh, sharded
from signconv.runtime import master as masters
from signconv.runtime import state as states
from signconv.runtime.errors import coded
from signconv.runtime.foreign import (
    MEANINGS,
    found_in,
    is_momentum,
    momentum_of,
    sum_to_average,
)
from signconv.runtime.groups import Values
from signconv.runtime.program import (
    HyperSlot,
    Kept,
    MomentSlot,
    OptimizerProgram,
    pitch_of,
    row_length,
)
from signconv.runtime.reference import ops

if TYPE_CHECKING:
    from signconv.runtime.optimizer import FusedOptimizer

_KEYS = {of: key for key, of in MEANINGS.items()}

#: Stands among what was found for a parameter where the other optimizer has the same rule.
SAME = "the same rule"

# ---------------------------------------------------------------- in

#: A parameter, what was found for it, its step count, and the group that it is in here.
Work = list[tuple[Tensor, dict[str, Any], Any, Mapping[str, Any]]]
#: What each group is to have.
Changes = list[dict[str, Any]]


def load(optimizer: FusedOptimizer, source: Any) -> None:
    """``FusedOptimizer.load_moments``: all is read and checked before anything is written."""
    optimizer._adopt()
    optimizer._settle()
    if isinstance(source, torch.optim.Optimizer) and hasattr(source, "program"):
        work, changes, extra = _ours(optimizer, source)
    else:
        saved = source.state_dict() if hasattr(source, "state_dict") else source
        try:
            work, changes = _theirs(optimizer, saved)
        except Exception as error:
            if str(error).endswith("]"):  # one of ours
                raise
            raise coded(
                ValueError,
                "SC501",
                f"{type(optimizer).__name__}.load_moments: this is not the state_dict of an "
                f"optimizer as torch.optim keeps it ({type(error).__name__}: {error})",
            ) from error
        extra = {}
    made = _states(optimizer, work)
    for p, entries in extra.items():
        made[p] |= entries
    trial: list[dict[str, Any]] = [
        {**g, **c} for g, c in zip(optimizer.param_groups, changes, strict=True)
    ]
    Values(optimizer.program, type(optimizer).__name__).settle(trial, optimizer.defaults)
    for group, checked, change in zip(optimizer.param_groups, trial, changes, strict=True):
        group |= {k: checked[k] for k in change}
    own = states.names(optimizer.program)
    for p, entry in made.items():
        kept = {k: v for k, v in optimizer.state.get(p, {}).items() if k not in own}
        optimizer.state[p] = {**kept, **optimizer._kept(entry)}
    optimizer._made_anew()


def _sizes_match(optimizer: FusedOptimizer, groups: Sequence[Mapping[str, Any]]) -> None:
    sizes = [len(g["params"]) for g in groups]
    ours = [len(g["params"]) for g in optimizer.param_groups]
    if sizes != ours:
        raise coded(
            ValueError,
            "SC502",
            f"the source has param groups of {sizes} parameters and {type(optimizer).__name__} of "
            f"{ours}: build the optimizer with the groups that the other one had",
        )


def _theirs(optimizer: FusedOptimizer, saved: Any) -> tuple[Work, Changes]:
    """From a state_dict with torch.optim's keys or those of its relatives."""
    name = type(optimizer).__name__
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise coded(
            ValueError,
            "SC501",
            f"{name}.load_moments takes an optimizer or its state_dict: this has no 'state' and "
            "'param_groups'",
        )
    groups, mine = saved["param_groups"], optimizer.param_groups
    if any("program" in g for g in groups):
        raise coded(
            ValueError,
            "SC512",
            f"{name}.load_moments: this state_dict is of an optimizer of signconv: load_state_dict "
            "takes that of the same program; of another give load_moments the optimizer itself, "
            "after it has loaded it",
        )
    _sizes_match(optimizer, groups)
    keys = [k for g in groups for k in g["params"]]
    lost = [k for k in saved["state"] if k not in keys and not isinstance(k, Tensor)]
    if lost:
        raise coded(
            ValueError,
            "SC501",
            f"{name}.load_moments: the state_dict has state of {lost[:3]}, which stand in none of "
            "its param groups",
        )
    work: Work = []
    changes: Changes = []
    for group, target in zip(groups, mine, strict=True):
        squared = False
        if group.get("nesterov") and "nesterov" not in optimizer.program.passes:
            raise coded(
                ValueError,
                "SC510",
                f"{name} does not look ahead, and the other optimizer does (nesterov=True): take "
                "one that was built with --convert nesterov",
            )
        for key, p in zip(group["params"], target["params"], strict=True):
            entry = saved["state"].get(key)
            if entry:
                found = found_in(entry, group)
                squared = squared or "ema(g**2)" in found
                # torch's SGD counts no steps: one at least, or an average would begin anew
                work.append((p, found, entry.get("step", 1), target))
        changes.append(_hypers(optimizer.program, target, group, squared))
    return work, changes


def _ours(
    optimizer: FusedOptimizer, source: Any
) -> tuple[Work, Changes, dict[Tensor, dict[str, Tensor]]]:
    """From another optimizer of ours, over the same parameters or others of their shapes; of the
    same rule everything, of another the moments that both keep."""
    _sizes_match(optimizer, source.param_groups)
    one, two = source.program, optimizer.program
    same = (one.spec, one.passes, one.precision) == (two.spec, two.passes, two.precision)
    keys = {h.key for h in one.hypers}
    shared = [h.key for h in two.hypers if h.key in keys and _count(one, h) == _count(two, h)]
    work: Work = []
    changes: Changes = []
    extra: dict[Tensor, dict[str, Tensor]] = {}
    for group, theirs in zip(optimizer.param_groups, source.param_groups, strict=True):
        changes.append({k: theirs[k] for k in (*shared, "maximize", "lr0") if k in theirs})
        for p, q in zip(theirs["params"], group["params"], strict=True):
            entry = source.state.get(p)
            if not entry:
                continue
            held = decoded(one, p, entry)
            found: dict[str, Any] = {m.of: held[m.name] for m in one.moments if m.of}
            if same:
                found |= {f"its own {m.name}": held[m.name] for m in one.moments}
                found[SAME] = None
            work.append((q, found, entry["step"], group))
            kept = masters.layout(q, group["master"])
            device = mesh.local(q).device
            extra[q] = {
                k: sharded.place(entry[k], q, device)
                for k, (shape, dtype) in kept.items()
                if k in entry and entry[k].shape == shape and entry[k].dtype == dtype
            }
            if same:
                known = [n for n, _ in two.scalar_states if n in entry]
                extra[q] |= {n: entry[n].detach().clone() for n in known}
                extra[q] |= {k.name: _number_of(q, k, entry, optimizer) for k in two.kept}
    return work, changes, extra


def _number_of(
    p: Tensor, kept: Kept, entry: Mapping[str, Tensor], optimizer: FusedOptimizer
) -> Tensor:
    """A state that is one number for more than an element, as the same rule has it."""
    x = entry[kept.name]
    wanted = axes.kept(p.shape, kept.over)
    if [*x.shape] != wanted:
        raise coded(
            ValueError,
            "SC507",
            f"{type(optimizer).__name__}: a parameter has shape {list(p.shape)}, and the other "
            f"optimizer's {kept.name} {list(x.shape)} in place of {wanted}",
        )
    return sharded.place(x, p, mesh.local(p).device)


def _count(program: OptimizerProgram, slot: HyperSlot) -> int:
    return sum(h.key == slot.key for h in program.hypers)


def _found(m: MomentSlot, found: Mapping[str, Any]) -> Any:
    """What was found for a moment; None for nothing."""
    return found.get(m.of) if m.of in found else found.get(f"its own {m.name}")


def _states(optimizer: FusedOptimizer, work: Work) -> dict[Tensor, dict[str, Tensor]]:
    """State for every parameter: all of it, or an error and none."""
    program, name = optimizer.program, type(optimizer).__name__
    own = [n for n, _ in program.scalar_states if n not in program.floors]
    own += [k.name for k in program.kept]
    made: dict[Tensor, dict[str, Tensor]] = {}
    for p, found, step, group in work:
        lost = [] if SAME in found else own
        missing = [m.name for m in program.moments if _found(m, found) is None]
        if missing or lost:
            has = ", ".join(sorted(found)) or "no moments"
            needs = [*(f"{m.name} = {m.of or 'its own'}" for m in program.moments), *lost]
            raise coded(
                ValueError,
                "SC510",
                f"{name} keeps {', '.join(needs)}, and the other optimizer "
                f"has {has}: {', '.join((*missing, *lost))} cannot be taken from it; start {name} "
                "anew, or take an optimizer with the same averages",
            )
        for m in program.moments:
            if _found(m, found).shape != p.shape:
                raise coded(
                    ValueError,
                    "SC507",
                    f"{name}: a parameter has shape {list(p.shape)} and the other optimizer's "
                    f"{m.of or m.name} {list(_found(m, found).shape)}",
                )
        count = states.count(step, p)
        entry = optimizer._new_state(p, group["master"])
        entry["step"] = count
        _encode(program, p, entry, found, group["seed"])
        made[p] = entry
    return made


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
        whole = sharded.place(_found(m, found).to(torch.float32), p, device)
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


def _hypers(
    program: OptimizerProgram, target: Mapping[str, Any], group: Mapping[str, Any], squared: bool
) -> dict[str, Any]:
    """Learning rate, decay, eps and betas of another optimizer's group; ``squared``: whether it
    keeps an average of squares (of one average alone, Lion's, the second beta is its own)."""
    names = {h.name: h for h in program.hypers}
    made: dict[str, Any] = {"maximize": group.get("maximize", False)}
    for key in ("lr", "weight_decay", "eps"):
        if key in group and key in names:
            x = group[key]
            made[key] = x.detach().clone() if isinstance(x, Tensor) else x
    if "initial_lr" in group:
        made["initial_lr"] = group["initial_lr"]
    if "lr" in made:
        made["lr0"] = float(made.get("initial_lr", made["lr"]))
    if is_momentum(group):
        # The same step: lr times the sum is lr / (1 - momentum) times the average
        share = sum_to_average(group)
        made |= {k: made[k] / share for k in ("lr", "initial_lr", "lr0") if k in made}
        if "weight_decay" in made and program.decay == "decoupled":
            made["weight_decay"] = made["weight_decay"] * share
        if "momentum" in names:
            made["momentum"] = momentum_of(group)
        return made
    betas = group.get("betas")
    if betas is None:
        return made
    place = {"ema(g)": 0, "ema(g**2)": 1, "max(ema(g**2))": 1} if squared else {"ema(g)": 1}
    alike = squared == (len(program.moments) > 1)
    if alike and len(betas) == len(target.get("betas", ())):
        made["betas"] = tuple(map(float, betas))
        return made
    for m in program.moments:
        hyper = names.get(m.beta)
        if hyper is None or m.of not in place:
            continue
        value = float(betas[place[m.of]])
        if hyper.index is None:
            made[hyper.key] = value
        else:
            old = list(made.get(hyper.key, target[hyper.key]))
            old[hyper.index] = value
            made[hyper.key] = tuple(old)
    return made


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
    foreign += [k.name for k in program.kept]
    hypers = {h.key for h in program.hypers}
    momentum = "momentum" in hypers
    kept = {m.of for m in program.moments}
    ahead = "nesterov" in program.passes
    keeps = ", ".join(foreign) or ("no average of gradients" if program.moments else "no moments")
    if foreign or "ema(g)" not in kept or ahead:
        raise coded(
            ValueError,
            "SC513",
            f"{name} {'looks ahead' if ahead and not foreign else 'keeps ' + keeps}, for which "
            "torch.optim has no key: "
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
                    made = {
                        "step": torch.tensor(
                            float(entry["step"]), dtype=torch.float32, device="cpu"
                        ),
                        **made,
                    }
                state[number] = made
            numbers.append(number)
            number += 1
        groups.append({**_torch_group(program, group, momentum), "params": numbers})
    return {"state": state, "param_groups": groups}


def _torch_group(
    program: OptimizerProgram, group: Mapping[str, Any], momentum: bool
) -> dict[str, Any]:
    kind = torch.optim.SGD if momentum else torch.optim.AdamW
    defaults = kind([torch.empty(1, dtype=torch.float32, device="cpu")], lr=1e-3).defaults
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
