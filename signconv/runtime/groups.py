"""Values of a param group: converted to what a step reads, and checked; other keys are kept.

A group belongs to its user, who may edit it between steps.  Every step compares the objects in it
with those it checked last, so a value is read once however long it stays.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from operator import is_, itemgetter
from typing import Any

from torch import Tensor

from signconv.runtime import legacy
from signconv.runtime import master as masters
from signconv.runtime.compat import warn_once
from signconv.runtime.errors import coded
from signconv.runtime.program import HyperSlot, OptimizerProgram

FLAGS = ("maximize", "skip_nonfinite")
#: What a constructor takes beside the hyperparameters and ``backend``.
OPTIONS = ("seed", *FLAGS, "master")
#: Keys a param group carries beside the hyperparameters: DCP keeps only state and param_groups.
META = ("program", "format", *OPTIONS, "lr0")

#: What a group might say to be stored otherwise than the others.
STORAGE = ("state", "storage", "store", "state_dtype", "optim_bits")

#: Arguments of other optimizers that say how to compute and not what.
HOW = ("fused", "foreach", "capturable")
#: Arguments of other optimizers that mean something unless they are off.
OFF = (
    "differentiable", "amsgrad", "nesterov", "centered", "decoupled_weight_decay", "dampening",
    "momentum",
)  # fmt: skip

#: For a program of the user's own: its hash of release 0.1 stands in no table.
_FROM_0_1 = (
    ". If release 0.1 wrote it with this very spec of your own, set group['program'] of its "
    "param_groups to the optimizer's program.hash (CHANGELOG.md)"
)


# ---------------------------------------------------------------- single values


def number(value: Any, label: str) -> Any:
    """An int, a float, or the tensor of one number that it is; TypeError or ValueError else."""
    if type(value) is float:
        return value
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise coded(
                ValueError,
                "SC405",
                f"{label} is a tensor of {value.numel()} elements: it needs 1",
            )
        if value.is_complex() or value.dtype.itemsize == 1:  # bool, bytes, FP8
            raise coded(TypeError, "SC406", f"{label} is a tensor of {value.dtype}: not a number")
        return value
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:  # NumPy's
        value = value.item()
    made: Any = None
    if isinstance(value, bool | complex):
        pass
    elif isinstance(value, numbers.Integral):
        made = int(value)
        made = made if abs(made) < 2**1023 else math.copysign(math.inf, made)
    elif isinstance(value, str) or hasattr(value, "__float__"):
        try:
            made = float(value)
        except (TypeError, ValueError):  # a word, an array
            made = None
    if made is None:
        raise coded(TypeError, "SC406", f"{label} = {value!r} is not a number")
    return made


def several(value: Any, key: str, count: int) -> tuple[Any, ...]:
    """The entries of a tuple, a list, a config's list, an array or a tensor of ``count``."""
    entries: Any = None
    if isinstance(value, Tensor) or (hasattr(value, "tolist") and hasattr(value, "shape")):
        entries = value.tolist()
    elif not isinstance(value, str | bytes | Mapping | Set) and hasattr(value, "__iter__"):
        entries = list(value)
    if not isinstance(entries, list) or len(entries) != count:
        raise coded(ValueError, "SC404", f"{key} = {value!r} needs {count} numbers")
    return tuple(entries)


def seed(value: Any) -> int:
    """A seed as an int; ValueError for what is none."""
    made = value
    if isinstance(made, Tensor) and made.numel() == 1 and not made.is_floating_point():
        made = made.item()
    if hasattr(made, "item") and not isinstance(made, Tensor) and getattr(made, "size", 1) == 1:
        made = made.item()
    if isinstance(made, str) and made.strip().isdecimal():
        made = int(made)
    if isinstance(made, bool) or not isinstance(made, int) or not 0 <= made < 2**63:
        raise coded(ValueError, "SC402", f"seed = {value!r} is not an integer in 0 <= seed < 2**63")
    return made


def flag(value: Any, key: str) -> bool:
    """True or False; a string such as "no" would count as True."""
    made = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if not isinstance(made, bool | int) or made not in (0, 1):
        raise coded(TypeError, "SC409", f"{key} = {value!r} is not True or False")
    return bool(made)


# ---------------------------------------------------------------- names


def unknown_arguments(
    program: OptimizerProgram, unknown: Mapping[str, object], known: Sequence[str], name: str
) -> None:
    """Raise TypeError for an argument that the optimizer does not have.

    What says how another optimizer computes, or is switched off, is ignored: with one warning
    where it asked for something.
    """
    for key, value in unknown.items():
        _removed(program, key, name)
        if key in ("program", "format"):  # of ``optimizer.defaults``
            _same_program(program, {key: value}, name)
            continue
        off = value is None or (isinstance(value, int | float) and value == 0)
        if key in (*HOW, *OFF) and off:
            continue
        if key in HOW:
            warn_once(
                f"{name} has no {key!r} and ignores it: every step is fused, and can be captured. "
                "Leave it out"
            )
            continue
        if key in OFF:
            raise coded(
                TypeError,
                "SC403",
                f"{name} has no {key!r}: leave it out, or see `signconv list` for an optimizer "
                "that does this",
            )
        valid = list(dict.fromkeys([*known, "seed", "backend", *FLAGS, "master"]))
        close = difflib.get_close_matches(key, valid, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else f" It takes: {', '.join(valid)}."
        raise coded(TypeError, "SC403", f"{name} has no {key!r}.{hint}")


def misspelt(key: str, names: Sequence[str]) -> str | None:
    """The name that a key of a group was meant to be, None for a key of the user's own.

    Meant are names of the same letters but for case, order, a dash or about one letter in five;
    ``weight_decay_mult``, a name with more words, is the user's.
    """
    plain = key.casefold().replace("-", "").replace("_", "")
    for name in names:
        bare = name.replace("_", "")
        words = key.casefold().split("_")
        if name in key.casefold() and len(words) > len(name.split("_")):
            continue
        close = difflib.SequenceMatcher(None, plain, bare).ratio() >= 0.8
        if plain == bare or close or (len(bare) > 2 and sorted(plain) == sorted(bare)):
            return name
    return None


def _removed(program: OptimizerProgram, key: str, name: str) -> None:
    if key in program.removed:
        raise coded(TypeError, "SC403", f"{name} has no {key!r}: {program.removed[key]}")


def _same_program(program: OptimizerProgram, group: Mapping[str, Any], name: str) -> None:
    """Raise ValueError for a group that says it was made for another program."""
    theirs, storage = group.get("program", program.hash), group.get("format", program.storage)
    known = legacy.stored(theirs if isinstance(theirs, str) else None, program)
    if known is None or storage != program.storage:
        raise coded(
            ValueError,
            "SC410",
            f"a param group says it is of program {theirs!r} with {storage!r} state, {name} is "
            f"program {program.hash} with {program.storage} state: leave out 'program' and "
            "'format'",
        )


# ---------------------------------------------------------------- groups


class Values:
    """What a step reads from the param groups of one optimizer, converted and checked."""

    def __init__(self, program: OptimizerProgram, name: str) -> None:
        self.program, self.name = program, name
        self._slots: dict[str, list[HyperSlot]] = {}
        # By their place in the tuple: declared and installed by passes they stand in any order
        for h in sorted(program.hypers, key=lambda h: h.index or 0):
            self._slots.setdefault(h.key, []).append(h)
        self.keys = (*self._slots, "lr0", *OPTIONS)
        self._read = itemgetter(*self.keys)
        self._seen: list[tuple[Any, ...]] = []

    def settle(self, groups: Sequence[dict[str, Any]], defaults: Mapping[str, Any]) -> None:
        """Convert and check what was put into the groups since the last call.

        Raises TypeError or ValueError before a step writes anything.
        """
        seen = self._seen
        if len(seen) != len(groups):
            seen = self._seen = [()] * len(groups)
        for i, group in enumerate(groups):
            try:
                values = self._read(group)
            except KeyError:
                values = ()
            if len(values) != len(seen[i]) or not values or not all(map(is_, values, seen[i])):
                self.check(group, defaults, seen[i], wait=False)
                seen[i] = self._read(group)
            if type(group["params"]) is not list:
                held = group["params"]
                group["params"] = [held] if isinstance(held, Tensor) else list(held)

    def check(
        self,
        group: dict[str, Any],
        defaults: Mapping[str, Any],
        seen: tuple[Any, ...] = (),
        wait: bool = True,
    ) -> None:
        """Convert and check one group, all but the objects in ``seen``; what lacks has its default.

        wait: whether to read tensors of other devices for their range.
        """
        for key in (*self._slots, *OPTIONS):
            group.setdefault(key, defaults[key])
        group.setdefault("program", self.program.hash)
        group.setdefault("format", self.program.storage)
        for place, key in enumerate(self.keys):
            if key == "lr0" and key not in group:
                group[key] = float(group["lr"])  # a number: a step never waits for the device
            if not seen or group[key] is not seen[place]:
                group[key] = self._value(key, group[key], wait)

    def _value(self, key: str, value: Any, wait: bool) -> Any:
        if key == "seed":
            return seed(value)
        if key in FLAGS:
            return flag(value, key)
        if key == "master":
            masters.check(value)
            return value
        if key == "lr0":
            slot = replace(self._slots["lr"][0], name="lr0", key="lr0")
            return _checked(slot, float(number(value, "lr0")), wait)
        slots = self._slots[key]
        if slots[0].index is None:
            return _checked(slots[0], value, wait)
        entries = several(value, key, len(slots))
        return tuple(_checked(h, x, wait) for h, x in zip(slots, entries, strict=True))

    def enter(self, group: dict[str, Any], defaults: Mapping[str, Any]) -> None:
        """Check a new group, its keys too; keys of the user's own are kept."""
        names = [*self._slots, *OPTIONS]
        for key in group:
            if key in (*names, "params", "param_names", "initial_lr", *META):
                continue
            _removed(self.program, key, self.name)
            if key in STORAGE:
                raise coded(
                    TypeError,
                    "SC444",
                    f"a param group says {key}={group[key]!r}: all groups of one optimizer store "
                    f"their moments as {self.name} does ({self.program.storage}); give these "
                    "parameters an optimizer of their own, built with another --state, and step "
                    "both",
                )
            meant = misspelt(key, names)
            if meant is not None:
                raise coded(
                    TypeError,
                    "SC403",
                    f"{self.name} has no {key!r}. Did you mean {meant!r}? A key of your own in a "
                    "param group needs a name that is not so close to it",
                )
        _same_program(self.program, group, self.name)
        group["program"] = self.program.hash
        self.check(group, defaults)

    def loaded(
        self,
        groups: Sequence[dict[str, Any]],
        own: Sequence[Mapping[str, Any]],
        defaults: Mapping[str, Any],
    ) -> list[Mapping[str, str]]:
        """Check the groups of a state_dict, and complete them from the optimizer's own.

        Returns for each group the formats of moments that its state holds in other formats than
        today's.  Raises ValueError for groups that are not those of this optimizer.
        """
        stored = []
        if len(groups) != len(own):
            raise coded(
                ValueError,
                "SC502",
                f"the state_dict has {len(groups)} param groups, {self.name} has {len(own)}",
            )
        for i, (new, old) in enumerate(zip(groups, own, strict=True)):
            if "params" not in new:
                raise coded(
                    ValueError, "SC504", f"param group {i} of the state_dict lacks ['params']"
                )
            if len(new["params"]) != len(old["params"]):
                raise coded(
                    ValueError,
                    "SC502",
                    f"param group {i}: the state_dict has {len(new['params'])} parameters, "
                    f"{self.name} has {len(old['params'])}",
                )
            stored.append(self._same_state(new))
            # An earlier release's names for this program; it is saved under today's
            new["program"], new["format"] = self.program.hash, self.program.storage
            for key, value in old.items():
                new.setdefault(key, value)
            self.check(new, defaults)
        return stored

    def _same_state(self, group: Mapping[str, Any]) -> Mapping[str, str]:
        program, theirs = self.program, group.get("program")
        theirs = theirs if isinstance(theirs, str) else None
        stored = legacy.stored(theirs, program)
        if stored is not None:
            if (before := legacy.noise(theirs, program)) != program.noise:
                warn_once(
                    f"this state_dict was written with {before} noise of the sign, and {self.name} "
                    f"goes on with {program.noise} noise: its moments mean the same (to keep "
                    f"{before} noise build with --convert stosign:noise={before})"
                )
            return stored
        other_storage = (
            ""
            if group.get("format", program.storage) == program.storage
            else ", and where that is the same rule in another storage go on from it: "
            "optimizer.load_moments(that one)"
        )
        theirs_own = theirs and group.get("format") == program.storage and not legacy.known(theirs)
        raise coded(
            ValueError,
            "SC503",
            f"this state_dict belongs to program {theirs or '(none: another optimizer)'} "
            f"with {group.get('format', 'unknown')} state, {self.name} is program "
            f"{program.hash} with {program.storage} state: their moments "
            "differ in meaning or in storage, so load it with the optimizer that wrote it"
            + (_FROM_0_1 if theirs_own else other_storage),
        )


def _checked(slot: HyperSlot, value: Any, wait: bool) -> Any:
    made = number(value, slot.label)
    if not isinstance(made, Tensor):
        slot.check(made)
    elif not made.is_meta and (wait or made.device.type == "cpu"):
        slot.check(made.detach().item())
    return made
