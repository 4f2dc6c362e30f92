"""Several optimizers as one: each steps its own parameters by its own rule, all in one step.

Every part begins its step, which looks at all that it reads, before the first writes: what one
refuses leaves the others as they were, and one answer to whether a step is skipped is everybody's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import checks, compiled, evaluation, extras, mesh, owners, sharded, totals
from signconv.runtime import master as masters
from signconv.runtime.compat import outside_dynamo
from signconv.runtime.errors import coded
from signconv.runtime.joined import Joined
from signconv.runtime.optimizer import Begun, FusedOptimizer
from signconv.runtime.settings import unaffected

#: Key of a param group: whose it is.
RULE = "rule"
#: What a GradScaler, or whoever else, puts on an optimizer for its next step.
_FLAGS = ("grad_scale", "found_inf")


def rules(optimizer: FusedOptimizer | Hybrid) -> Mapping[str, FusedOptimizer]:
    """The parts of a hybrid by rule; of an optimizer by itself, it under its class's name."""
    if isinstance(optimizer, Hybrid):
        return optimizer.parts
    return {type(optimizer).__name__: optimizer}


def hybrid(*optimizers: FusedOptimizer) -> Hybrid:
    """One optimizer of several, each with its parameters: ``hybrid(Muon(…), AdamW(…))``.

    Raises TypeError for an optimizer that signconv did not generate and for a hybrid, ValueError
    for a parameter that two of them have, RuntimeError for one that is stepped inside backward.
    """
    return Hybrid(*optimizers)


class Hybrid(torch.optim.Optimizer):
    """One torch.optim.Optimizer of several of this library, its ``parts`` by rule.

    A rule is called as its class, a second of one class with a 2 behind it.  Param groups are those
    of the parts, one part's after the other's, and each says whose it is under the key "rule";
    ``state`` is all their state.  Parts may be looked at, and step their parameters alone if they
    are stepped by themselves; of their hooks those of the step are called.

    The norm that a part reads of all gradients (``--convert clip``) is that of all the hybrid's.
    Sums that a part makes of its own state over all tensors (Prodigy's) are over its own.
    ``skip_nonfinite`` in any group skips the step of all.  An extra input goes to the parts that
    read it; one for every parameter is given for those of the hybrid.
    """

    _release: Any = None  # the handle of gradient_release, which steps the parameters

    def __init__(self, *optimizers: FusedOptimizer) -> None:
        parts: dict[str, FusedOptimizer] = {}
        for part in optimizers:
            _check(part)
            name = type(part).__name__
            count = sum(type(x).__name__ == name for x in parts.values())
            parts[name + str(count + 1) * bool(count)] = part
        if not parts:
            raise coded(
                TypeError, "SC473", "hybrid() needs optimizers: signconv.hybrid(Muon(…), AdamW(…))"
            )
        checks.parted({rule: part.param_groups for rule, part in parts.items()})
        first, *others = (part.defaults for part in parts.values())
        common = {k: v for k, v in first.items() if all(k in x for x in others)}
        super().__init__(chain.from_iterable(p.param_groups for p in parts.values()), common)
        for rule, part in parts.items():
            for group in part.param_groups:
                group[RULE] = rule
        self.parts = parts
        self._reset()

    def _reset(self) -> None:
        self._number = compiled.enter(self)
        self._skipped: dict[torch.device, Tensor] = {}
        self._seen: list[list[int]] = []
        self._groups: list[dict[str, Any]] = []
        self._known: list[dict[str, Any]] = []  # in it when it was last looked at

    # ---------------------------------------------------------------- groups and state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts: their own dicts, in one list, whose edits by hand reach them."""
        theirs = [*chain.from_iterable(part.param_groups for part in self.parts.values())]
        if _same(theirs, self._known) and not _same(self._groups, self._known):
            self.param_groups = self._groups
            theirs = [*chain.from_iterable(part.param_groups for part in self.parts.values())]
        if not _same(theirs, self._known) or not _same(self._groups, self._known):
            self._name_rules()
            self._groups[:] = self._known = theirs
        return self._groups

    @param_groups.setter
    def param_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        if "parts" not in self.__dict__:  # torch.optim.Optimizer's constructor
            return
        for group in groups:
            self._part(group)
        for rule, part in self.parts.items():
            part.param_groups = [group for group in groups if group[RULE] == rule]

    @property
    def state(self) -> Any:
        """State of all parts by parameter; what is written goes to the part that has it."""
        return Joined(self.parts.values())

    @state.setter
    def state(self, state: Mapping[Any, Any]) -> None:
        if "parts" in self.__dict__:
            mine = Joined(self.parts.values())
            mine.clear()
            mine.update(state)

    def _part(self, group: Mapping[str, Any]) -> FusedOptimizer:
        """Whose a group is by its rule."""
        rule = group.get(RULE)
        if not isinstance(rule, str) or rule not in self.parts:
            what = "says no rule" if rule is None else f"says rule={rule!r}"
            raise coded(
                ValueError,
                "SC475",
                f"a param group of a hybrid {what}: it needs one of {', '.join(self.parts)}, as in "
                f'{{"params": …, "rule": {next(iter(self.parts))!r}}}',
            )
        return self.parts[rule]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the part that its key "rule" names.

        Raises ValueError for a rule that is missing or unknown and for a parameter that is in
        another part, else what that part raises.
        """
        if "parts" not in self.__dict__:  # torch.optim.Optimizer's constructor
            return
        part = self._part(param_group)
        params = param_group["params"]
        if not isinstance(params, Tensor | set):
            param_group["params"] = params = [*params]
        new = [params] if isinstance(params, Tensor) else params
        bare = [x[1] if isinstance(x, tuple) else x for x in new]
        names = [x[0] if isinstance(x, tuple) else None for x in new]
        held = {r: o.param_groups for r, o in self.parts.items() if o is not part}
        checks.parted({**held, param_group[RULE]: [{"params": bare, "param_names": names}]})
        part.add_param_group(param_group)

    def _name_rules(self) -> None:
        """Write whose they are into groups; ValueError where that was edited."""
        for rule, part in self.parts.items():
            for group in part.param_groups:
                if group.setdefault(RULE, rule) != rule:
                    raise coded(
                        ValueError,
                        "SC475",
                        f"a param group of {rule} says rule={group[RULE]!r} now: a group stays "
                        "with the optimizer that it was given to; make the optimizers anew",
                    )

    # ---------------------------------------------------------------- the step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **inputs: Any) -> Any:
        """One step of every part; returns the closure's loss, or None.

        inputs: the extra ones that any part reads, by name; a tensor for every parameter of the
        hybrid, in the order of its groups or by parameter (for parts that do not read it None), or
        one number.  Raises, with nothing changed, what any part's step raises, and TypeError for an
        input that none of them has.
        """
        given = self._shared_out(inputs)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plain = not inputs and closure is None and not any(x._dtensors for x in self.parts.values())
        if torch.compiler.is_compiling() and plain:
            compiled.trace(self._number, self.param_groups)
        else:
            self._step(given)
        return loss

    def _shared_out(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Extra inputs by part; TypeError for what no part has, or one cannot do without."""
        parts = self.parts
        slots = {x.name: x for part in parts.values() for x in part.program.extras}
        per_element = {n for p in parts.values() for n in p.program.tensors}
        params = [p for group in self.param_groups for p in group["params"]]
        given: dict[str, Any] = {}
        for key, value in inputs.items():
            if key not in slots:
                takes = f"they take: {', '.join(slots)}" if slots else "a closure is all they take"
                raise coded(
                    TypeError,
                    "SC465",
                    f"none of {', '.join(parts)} has an extra input {key!r}; {takes}",
                )
            given[key] = value
            if key in per_element and value is not None:
                given[key] = dict(extras.pairs(value, key, params, type(self).__name__))
        made = []
        for rule, part in parts.items():
            own = {x.name: given[x.name] for x in part.program.extras if x.name in given}
            mine = [p for group in part.param_groups for p in group["params"]]
            for key in part.program.tensors:
                if isinstance(own.get(key), dict):
                    own[key] = {p: own[key][p] for p in mine}
            made.append(extras.named(part.program, own, rule))
        return made

    @outside_dynamo
    @unaffected
    def _step(self, given: Sequence[Mapping[str, Any]] | None = None) -> None:
        """The step after the closure (of ``compiled`` without extra inputs)."""
        _ = self.param_groups  # edits of it by hand
        self._name_rules()
        parts = [*self.parts.values()]
        inputs = [*self._shared_out({})] if given is None else [*given]
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(self._lent(part))
            calls = [_before(part, x) for part, x in zip(parts, inputs, strict=True)]
            begun = [
                part._begin(extras.named(part.program, kwargs, rule))
                for (rule, part), (_, kwargs) in zip(self.parts.items(), calls, strict=True)
            ]
            for part, mine in zip(parts, begun, strict=True):
                stack.callback(part._end, mine)
            self._no_shared_memory(begun)
            self._write(parts, begun)
        for part, mine, (args, kwargs) in zip(parts, begun, calls, strict=True):
            part._remember(mine)
            vars(part)["_opt_called"] = True  # schedulers of a part's own look for its step
            for hook in part._optimizer_step_post_hooks.values():
                hook(part, args, kwargs)

    def _write(self, parts: Sequence[FusedOptimizer], begun: Sequence[Begun]) -> None:
        """Prepare all parts, and step them unless any of them finds what skips the step."""
        skippable = any(
            part.param_groups[i]["skip_nonfinite"]
            for part, mine in zip(parts, begun, strict=True)
            for there in mine.work.values()
            for i, _ in there
        )
        beside = totals.beside(
            [(x.program, len(x.param_groups), b.work) for x, b in zip(parts, begun, strict=True)]
        )
        jobs = [
            part._jobs(mine, skippable, near)
            for part, mine, near in zip(parts, begun, beside, strict=True)
        ]
        every = [*chain.from_iterable(jobs)]
        totals.skip_together(every)
        if skippable and every:
            self._agree(every)
        with owners.failures() as errors:  # of any part, when all have exchanged theirs
            for part, mine, own in zip(parts, begun, jobs, strict=True):
                part._write(mine, own, errors)

    def _agree(self, jobs: Sequence[totals.Job | totals.Later]) -> None:
        """One flag for the ranks of all parts, counted."""
        flag = jobs[0].skip
        assert flag is not None
        dtensors = [*chain.from_iterable(part._dtensors for part in self.parts.values())]
        if dtensors:
            flag = sharded.agree(flag, dtensors)
            for job in jobs:
                job.skip = flag.to(job.device)
        count = self._skipped.setdefault(
            flag.device, torch.zeros((), dtype=torch.int64, device=flag.device)
        )
        count.add_(flag.reshape(()).to(torch.int64))

    @contextmanager
    def _lent(self, part: FusedOptimizer) -> Iterator[None]:
        """What was put on the hybrid by hand for this step is on the part meanwhile."""
        mine = {n: getattr(self, n) for n in _FLAGS if hasattr(self, n)}
        before = {n: getattr(part, n) for n in mine if hasattr(part, n)}
        try:
            for name, value in mine.items():
                setattr(part, name, value)
            yield
        finally:
            for name in mine:
                if name in before:
                    setattr(part, name, before[name])
                else:
                    delattr(part, name)

    def _no_shared_memory(self, begun: Sequence[Begun]) -> None:
        """Parts have looked at theirs, by themselves; again where addresses are new."""
        seen = [part._checked._addresses for part in self.parts.values()]
        if len(seen) == len(self._seen) and all(
            a is b for a, b in zip(seen, self._seen, strict=True)
        ):
            return
        local = [mesh.local(p) for mine in begun for p in mine.stepped]
        checks.apart([x for x in local if x.numel()], type(self).__name__)
        self._seen = seen

    def step_parameter(self, index: int, p: Tensor) -> list[Tensor]:
        """``FusedOptimizer.step_parameter`` of the part that has group ``index``."""
        for part in self.parts.values():
            if index < len(part.param_groups):
                return part.step_parameter(index, p)
            index -= len(part.param_groups)
        return []

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """``FusedOptimizer.frozen`` of every part."""
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.frozen())
            yield

    @property
    def skipped_steps(self) -> int:
        """Steps left out because of non-finite gradients of any part (reads from the device)."""
        return int(sum(int(x) for x in self._skipped.values()))

    @property
    def released(self) -> bool:
        """Whether parameters are stepped inside backward (``signconv.gradient_release``)."""
        return self._release is not None or any(p.released for p in self.parts.values())

    @property
    def offloaded(self) -> bool:
        """Whether state lies on the host (``signconv.offload``)."""
        return any(part.offloaded for part in self.parts.values())

    def _arrive(self) -> None:
        for part in self.parts.values():
            part._arrive()

    # ---------------------------------------------------------------- evaluation

    def eval(self) -> None:
        """``FusedOptimizer.eval`` of every part, or of none where one raises."""
        done = []
        try:
            for part in self.parts.values():
                part.eval()
                done.append(part)
        except BaseException:
            for part in done:
                part.train()
            raise

    def train(self) -> None:
        """``FusedOptimizer.train`` of every part."""
        for part in self.parts.values():
            part.train()

    # ---------------------------------------------------------------- checkpoints, copies

    def state_dict(self) -> dict[str, Any]:
        """torch.optim's, parameters numbered through all parts."""
        self._arrive()
        return super().state_dict()

    @unaffected
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state of all parts bit for bit, or of none.

        Raises ValueError for a state_dict with other rules in its groups, and what any part's
        ``load_state_dict`` raises.
        """
        self._arrive()
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        checks.is_state_dict(state_dict)
        groups, own = [*state_dict["param_groups"]], [g[RULE] for g in self.param_groups]
        theirs = [group.get(RULE) for group in groups]
        if theirs != own:
            raise coded(
                ValueError,
                "SC514",
                f"the state_dict's param groups have the rules {_listed(theirs)}, this hybrid's "
                f"{_listed(own)}: make the optimizers as they were when it was saved",
            )
        made: list[Any] = []
        left = dict(state_dict["state"])
        for part in self.parts.values():
            mine, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            ids = [i for group in mine for i in group.get("params", ())]
            state = {i: left.pop(i) for i in ids if i in left}
            made.append({"state": state, "param_groups": mine})
        made[0]["state"].update(left)  # what belongs to no parameter
        read = [part._read(x) for part, x in zip(self.parts.values(), made, strict=True)]
        for part, (new, state) in zip(self.parts.values(), read, strict=True):
            part._take_over(new, state)
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)

    def master_weights(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """``FusedOptimizer.master_weights`` with the masters of all parts."""
        for part in self.parts.values():
            evaluation.refuse(part, "master weights are taken (model.state_dict() has these)")
        self._arrive()
        return masters.export(model, self.state)

    @unaffected
    @torch.no_grad()
    def load_master_weights(self, model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
        """``FusedOptimizer.load_master_weights`` into all parts."""
        for part in self.parts.values():
            evaluation.refuse(part, "weights are loaded")
        self._arrive()
        model.load_state_dict(weights)
        for part in self.parts.values():
            part._write_masters(model, weights)

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._reset()


# ---------------------------------------------------------------- what the parts have of each other


def _before(part: FusedOptimizer, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Call the hooks that a part has before its step; the arguments that they make of its own."""
    args: Any = (part,)
    kwargs = dict(given)
    for hook in part._optimizer_step_pre_hooks.values():
        made = hook(part, args, kwargs)
        if made is not None:
            args, kwargs = made
    return args, kwargs


def _check(part: object) -> None:
    if not isinstance(part, FusedOptimizer):
        what = "a hybrid: give its parts" if isinstance(part, Hybrid) else type(part).__name__
        raise coded(
            TypeError,
            "SC473",
            f"hybrid() takes optimizers generated by signconv, and got {what}"
            + ("" if isinstance(part, Hybrid) else "; step others beside the hybrid"),
        )
    if part.released:
        raise coded(
            RuntimeError,
            "SC476",
            f"gradient_release is on for {type(part).__name__} by itself: remove() it, and call "
            "gradient_release with the hybrid",
        )


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _listed(rules: Sequence[Any]) -> str:
    return ", ".join("(none)" if r is None else str(r) for r in rules) or "of no group"
