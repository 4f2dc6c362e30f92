"""FusedOptimizer: what every generated optimizer is, as a torch.optim.Optimizer."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from signconv.runtime import backend as backends
from signconv.runtime import (
    checks,
    compiled,
    dense,
    evaluation,
    exchange,
    extras,
    mesh,
    owners,
    seeds,
    sharded,
    totals,
)
from signconv.runtime import master as masters
from signconv.runtime import state as states
from signconv.runtime.backend import Backend, Task
from signconv.runtime.checked import Checked, Promise, Work, by_device
from signconv.runtime.compat import outside_dynamo
from signconv.runtime.errors import coded
from signconv.runtime.groups import Values, unknown_arguments
from signconv.runtime.memory import notice
from signconv.runtime.places import Places
from signconv.runtime.program import OptimizerProgram
from signconv.runtime.settings import hooked, unaffected

#: Extra inputs of a step that gets none.
NOTHING: Mapping[str, Any] = {}
#: Sums over gradients that others step, where nobody else does.
NO_SUMS: Mapping[int, Tensor] = {}


@dataclass(frozen=True)
class Begun:
    """A step of which everything was looked at and nothing is written yet."""

    work: Work
    ready: Mapping[int, torch.device]
    stepped: list[Tensor]
    inputs: extras.Inputs
    promise: Promise | None


class FusedOptimizer(torch.optim.Optimizer):
    """Base of the generated optimizers; not used directly.

    Parameters may be fp32 or bf16 (stochastically rounded), of any shape, contiguous or not.
    ``state[p]`` holds each moment under its name in the spec (codes are uint8), its block scales
    as ``<moment>_scale`` (uint8, one per 32 elements), ``step`` (int64) and ``offset`` (int64,
    where this parameter's random numbers start).  Entries and group keys of others are kept.

    Without ``_step_supports_amp_scaling``: frameworks take that for a refusal of clipping, and a
    call for a step.  ``grad_scale`` and ``found_inf`` set by hand are honoured all the same.

    Raises TypeError or ValueError for a hyperparameter that is unknown or outside its range, for
    complex parameters and for dtypes other than fp32 and bf16 that require gradients.
    """

    program: ClassVar[OptimizerProgram]
    _born: int  # the how-manieth of this process
    _stepped: bool
    _seed_open: bool  # whether the default seed may still be looked at again
    _ranks: seeds.Ranks | None
    _release: Any = None  # the handle of gradient_release, which steps the parameters
    _offload: Any = None  # runtime.offload.Offload, where state lies on the host
    _frozen = False  # whether a step is made inside frozen()
    _promise: Promise | None

    def __init__(
        self,
        params: ParamsT,
        hypers: dict[str, Any],
        *,
        seed: int | None,
        backend: str,
        maximize: bool,
        skip_nonfinite: bool,
        master: str | None,
        unknown: Mapping[str, object],
    ) -> None:
        unknown_arguments(self.program, unknown, [*hypers], type(self).__name__)
        checks.backend(backend)
        self.backend = backend
        self._places = Places()
        self._reset()
        defaults = {
            **hypers,
            "maximize": maximize,
            "skip_nonfinite": skip_nonfinite,
            "master": master,
            "seed": seeds.smallest() if seed is None else seed,
        }
        self._values.check(defaults, defaults)
        del defaults["lr0"]
        super().__init__(params, defaults)
        self._number = compiled.enter(self)
        self._seed_open = seed is None
        seeds.enter(self)

    # ---------------------------------------------------------------- groups

    @unaffected
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its parameters get the next random-number offsets (rows of 32)."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._values.enter(group, self.defaults)
            if self.program.evaluation is not None:
                group.setdefault(evaluation.EVALUATING, False)
            checks.once(group["params"], type(self).__name__)
            for p in group["params"]:
                if p.requires_grad:  # what is frozen may be of any dtype
                    checks.param(p, type(self).__name__)
        except Exception:
            self.param_groups.pop()
            raise
        self._promise = None
        self._places.append(group["params"])
        self._dtensors += [p for p in group["params"] if mesh.is_sharded(p)]

    def _settle(self) -> None:
        """Convert and check what was put into the groups; at the first step choose the seed."""
        self._values.settle(self.param_groups, self.defaults)
        if not self._stepped:
            self._stepped, open_ = True, self._seed_open
            seeds.settle(self)
            self._ranks = seeds.ranks(self) if open_ else None
            if self._ranks is not None and not any("offset" in e for e in self.state.values()):
                self._adopt()  # DeepSpeed puts its parts into the groups by hand
                self._places.move(self._ranks.place())
        if self._ranks is not None and self._ranks.ask():
            self._ranks = None

    def _adopt(self) -> None:
        """Take in the parameters that were put into the groups by hand."""
        for p in self._places.unknown(self.param_groups):
            checks.param(p, type(self).__name__)
        if self._places.fewer(self.param_groups):
            self._backends.clear()  # tables of groups that are gone
        self._places.settle(self.param_groups, self.state)
        self._dtensors = [p for g in self.param_groups for p in g["params"] if mesh.is_sharded(p)]

    # ---------------------------------------------------------------- state

    def _new_state(self, p: Tensor, master: str | None) -> dict[str, Tensor]:
        """All state of one parameter before its first step."""
        checks.param(p, type(self).__name__)
        if p.is_meta:
            raise coded(
                RuntimeError,
                "SC417",
                f"{type(self).__name__}: a parameter is on the meta device and has no data: move "
                "the model to a real device before stepping",
            )
        return self._kept(states.create(self.program, p, master, self._places.offset(p)))

    def _kept(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Where the state of this optimizer lies."""
        return entry if self._offload is None else self._offload.kept(entry)

    def _arrive(self) -> None:
        """Wait for offloaded state that is on its way: before others read or replace it."""
        if self._offload is not None:
            self._offload.wait()

    @property
    def released(self) -> bool:
        """Whether parameters are stepped inside backward (``signconv.gradient_release``)."""
        return self._release is not None

    @property
    def offloaded(self) -> bool:
        """Whether the state lies on the host (``signconv.offload``)."""
        return self._offload is not None

    def _moved(self) -> None:
        """State went to the host, or came back: forget what knew where it was."""
        self._backends.clear()
        self._entries.clear()
        self._promise = None
        self._checked = Checked(self.program, type(self).__name__, host=self.offloaded)

    def _has_state(self, p: Tensor) -> bool:
        """Whether it was stepped or loaded; what others keep in ``state[p]`` does not count."""
        return self._checked.has_state(p, self.state)

    def _complete(self, fresh: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Enter state, beside what others keep there, that is there already."""
        for p, made in fresh.items():
            entry = self.state.setdefault(p, {})
            for name, value in made.items():
                entry.setdefault(name, value)

    def _reset(self) -> None:
        """Forget everything that a step can make anew: backends with their tables, stand-ins."""
        self._backends: dict[type[Backend], Backend] = {}
        self._entries: list[int] = []
        self._skipped: dict[torch.device, Tensor] = {}
        groups = getattr(self, "param_groups", ())  # none yet while it is constructed
        self._dtensors = [p for g in groups for p in g["params"] if mesh.is_sharded(p)]
        self._values = Values(self.program, type(self).__name__)
        self._checked = Checked(self.program, type(self).__name__, host=self.offloaded)
        self._promise = None
        self._stepped, self._seed_open = False, False
        self._ranks = None
        self._locals: sharded.Locals | None = None  # made at the first step with DTensors

    def _made_anew(self) -> None:
        """State was put in place of what a step has seen: forget tables and stand-ins of it."""
        self._backends.clear()
        self._entries, self._promise = [], None
        self._locals = None
        self._take_offsets()

    def _take_offsets(self) -> None:
        """Number elements as the state says that was loaded."""
        mine = {p: e for p, e in self.state.items() if isinstance(p, Tensor)}
        self._places.take({p: int(e["offset"]) for p, e in mine.items() if "offset" in e})

    @property
    def skipped_steps(self) -> int:
        """Steps left out because of non-finite gradients (reads from the device)."""
        return int(sum(int(x) for x in self._skipped.values()))

    # ---------------------------------------------------------------- evaluation

    @unaffected
    @torch.no_grad()
    def eval(self) -> None:
        """Put what the model is evaluated with in place of its parameters, until ``train()``.

        Of optimizers that train another point than they evaluate (Schedule-Free, averages of
        weights); nothing happens for any other.  The state holds a copy of the parameters
        meanwhile, and a step raises RuntimeError.  Checkpoints go on in the mode they were saved
        in.  Of DTensors every rank must call.
        """
        if self.program.evaluation is not None:
            self._arrive()
            evaluation.enter(self, self.program.evaluation)

    @unaffected
    @torch.no_grad()
    def train(self) -> None:
        """Put the parameters back as they were before ``eval()``, bit for bit.

        Raises RuntimeError where a checkpoint of the other mode came without them.
        """
        if self.program.evaluation is not None:
            self._arrive()
            evaluation.leave(self)

    # ---------------------------------------------------------------- the step

    def backend_for(self, device: torch.device) -> Backend:
        """The backend that steps parameters on ``device``.

        Raises RuntimeError where the one asked for by name cannot run there.
        """
        found = backends.choose(self.backend, device)
        if found not in self._backends:
            self._backends[found] = found(self.program)
        return self._backends[found]

    def _patch_step_function(self) -> None:
        """Called by torch for each class whose objects are made."""
        if not hasattr(type(self).step, "hooked"):
            type(self).step = hooked(type(self).step)  # type: ignore[method-assign]
        super()._patch_step_function()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, **inputs: Any) -> Any:
        """One optimization step; returns the closure's loss, or None.

        inputs: the extra ones that the program reads, by name (docs/using.md#extra-inputs): a
        tensor for every parameter, or one number.  None: not passed.  Raises TypeError, ValueError
        or RuntimeError, with nothing changed, for one that it does not have, that it cannot do
        without, or that does not fit.
        """
        given = extras.named(self.program, inputs, type(self).__name__)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling() and not (self._dtensors or given) and closure is None:
            compiled.trace(self._number, self.param_groups)
        else:
            self._step(given)
        return loss

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """A context in which steps do not look at every tensor again, as a captured graph does not.

        In it you promise that all parameters, gradients and state stay where they are: gradients
        are zeroed with ``zero_grad(set_to_none=False)`` and come at every step.  Hyperparameters
        may change.  Steps look at everything until one found nothing changed, and wherever tensors
        are strided or DTensors.  Only the Triton backend gains by it.

        Raises RuntimeError at a step that finds memory freed or param groups changed.  A tensor
        that is given other memory while the old is kept elsewhere is not noticed.
        """
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before
            if not before:
                self._promise = None

    @outside_dynamo
    @unaffected
    def _step(self, given: Mapping[str, Any] = NOTHING) -> None:
        """The step after the closure; of DTensors, and with extra inputs, torch.compile breaks its
        graph here."""
        begun = self._begin(given)
        try:
            jobs = self._jobs(begun)
            with owners.failures() as errors:
                self._write(begun, jobs, errors)
        finally:
            self._end(begun)
        self._remember(begun)

    # A hybrid begins the steps of all its optimizers before it writes the first (hybrid.py)

    def _begin(self, given: Mapping[str, Any]) -> Begun:
        """Look at everything that the step reads, or raise; parameters have state then."""
        evaluation.refuse(self, "training goes on")
        inputs = extras.collect(self.program, given, self.param_groups, type(self).__name__)
        self._settle()
        promise = self._promise
        if promise is not None:
            promise.keep(self.param_groups)
            return Begun(promise.work, promise.ready, promise.stepped, inputs, promise)
        return Begun(*self._look(), inputs, None)

    def _jobs(
        self, begun: Begun, skippable: bool = False, beside: Mapping[int, Tensor] = NO_SUMS
    ) -> list[totals.Job | totals.Later]:
        """What is to be run, device by device, prepared and with the flag that skips it.

        skippable: look for Inf and NaN though no param group here asks for it; beside: sums of
        squares of gradients that others step and the norm of all takes in, by numbers that are no
        param group's here.
        """
        sums = self._sums(begun.work, beside)
        return [
            self._job(device, parts, begun.ready, sums, begun.inputs, skippable)
            for device, parts in begun.work.items()
        ]

    def _write(
        self,
        begun: Begun,
        jobs: Sequence[totals.Job | totals.Later],
        errors: list[Exception],
    ) -> None:
        """Run them; ``errors``: of ``owners.failures``."""
        totals.advance(self.program, jobs, errors)
        if self._locals is not None:
            self._locals.finish(self.state)
        if self.program.shared:
            totals.share(self.program, self.param_groups, self.state, begun.stepped)

    def _end(self, begun: Begun) -> None:
        """What has to be done however the step ended."""
        if self._offload is not None:
            self._offload.finish(self.param_groups)
        notice(begun.stepped, bool(self._dtensors))

    def _remember(self, begun: Begun) -> None:
        """What the next step need not look at again."""
        if begun.promise is None:
            self._entries = [*map(id, self.state.values())]
            ready, groups = begun.ready, self.param_groups
            if self._frozen and len(ready) == len(groups) and not self._dtensors:
                name = type(self).__name__
                stepped = begun.stepped
                self._promise = Promise(begun.work, ready, stepped, groups, self.state, name)

    def _look(self) -> tuple[Work, dict[int, torch.device], list[Tensor]]:
        """What is to be stepped, looked at and with state; which groups are ready as they stand."""
        fresh: dict[Tensor, dict[str, Tensor]] = {}
        ready = self._followed()
        same = self._places.same
        groups = self.param_groups
        if not all(i in ready or same(i, g["params"]) for i, g in enumerate(groups)):
            self._adopt()
        work: Work = defaultdict(list)
        for i, group in enumerate(groups):
            if i in ready:
                work[ready[i]].append((i, group["params"]))
                continue
            active = [p for p in group["params"] if p.grad is not None and p.numel()]
            self._checked.group(i, group, active, self.state, bool(self._dtensors))
            for device, params in by_device(active).items():
                work[device].append((i, params))
        stepped = [*chain.from_iterable(params for parts in work.values() for _, params in parts)]
        if len(ready) < len(groups):
            self._checked.addresses(stepped, bool(self._dtensors))
        for device in work:
            self.backend_for(device)  # or its refusal
        for parts in work.values():
            for i, params in parts:
                for p in params if i not in ready else ():
                    if not self._has_state(p):
                        fresh[p] = self._new_state(p, groups[i]["master"])
        totals.inherit(self.program, groups, self.state, fresh)
        self._complete(fresh)  # all of it or, out of memory, nothing: the step can be retried
        if self._locals is None and self._dtensors:
            self._locals = sharded.Locals(self.program)
        return work, ready, stepped

    def _followed(self) -> dict[int, torch.device]:
        """Groups that one backend steps as a whole and can step again as it stands."""
        if self._entries != [*map(id, self.state.values())]:
            return {}
        found: dict[int, torch.device] = {}
        for backend in self._backends.values():
            found |= backend.followed(self.param_groups)
        return found

    @unaffected
    @torch.no_grad()
    def step_parameter(self, index: int, p: Tensor) -> list[Tensor]:
        """Step one parameter of group ``index`` by itself (gradient release, inside backward).

        Returns those that were stepped: none for a DTensor that takes all its ranks, and offloaded
        ones all at once when the last of their batch comes.
        """
        g = p.grad
        if g is None or p.numel() == 0:
            return [p]
        evaluation.refuse(self, "training goes on")
        self._settle()
        group = self.param_groups[index]
        if p not in self._places:
            self._adopt()
        name = type(self).__name__
        checks.memories(p, g, name)
        if self._has_state(p):
            states.mend(self.program, self.state[p], p)
            layout = states.layout(self.program, p, group["master"])
            checks.states(self.state[p], layout, p, name, self.offloaded)
        else:  # offloaded, those of a group at once: its batches are cut once
            new = [p] if self._offload is None else [q for q in group["params"] if q.requires_grad]
            new = [q for q in new if q.numel() and not self._has_state(q)]
            self._complete({q: self._new_state(q, group["master"]) for q in new})
        made: Tensor = p
        state: Mapping[Tensor, dict[str, Tensor]] = self.state
        if mesh.is_sharded(p):
            self._locals = self._locals or sharded.Locals(self.program)
            found = self._locals.alone(p, self.state[p])
            if found is None:
                return []
            made, state = found, self._locals.state
        backend = self.backend_for(made.device)
        with backend.on_device(made.device):
            if self._offload is not None:
                stepped = self._offload.gradient(backend, index, p, group, state)
                notice(stepped, False)
                return stepped
            task = Task(p, {**group, "params": [made]}, [made], state)
            backend.step(task, self._prepare(backend, [task], {}, None), self._grad_scale)
        if made is not p and self._locals is not None:
            self._locals.done(p, self.state[p])
        notice([p], False)
        return [p]

    def _sums(self, work: Work, beside: Mapping[int, Tensor]) -> totals.Sums | None:
        """Sums of squares of the gradients, where the program reads their norm; waiting for ours
        where one backend has tables of all of them and ``_job`` adds them up faster."""
        if not self.program.norm:
            return None
        sums = totals.Sums(self.program.norm, beside)
        sums.waiting = self._offload is None and len(work) == 1
        if not sums.waiting:
            for parts in work.values():
                totals.of_parameters(sums, parts)
        return sums

    def _job(
        self,
        device: torch.device,
        parts: list[tuple[int, list[Tensor]]],
        ready: Mapping[int, torch.device],
        sums: totals.Sums | None,
        inputs: extras.Inputs,
        skippable: bool,
    ) -> totals.Job | totals.Later:
        """Prepare the given parameters of the groups with the given indices, all on one device."""
        state: Mapping[Tensor, dict[str, Tensor]] = self.state
        groups: Sequence[Mapping[str, Any]] = self.param_groups
        dealt: list[tuple[int, list[Tensor]]] = []
        near = inputs
        if self._locals is not None:
            parts, dealt, groups = self._locals.split(parts, groups, state)
            state, near = self._locals.state, self._locals.inputs(inputs)
        tasks = [Task((i, device), groups[i], ps, state, inputs=near) for i, ps in parts]
        far = [p for _, params in dealt for p in params]
        every = (*parts, *dealt)
        skippable = skippable or any(self.param_groups[i]["skip_nonfinite"] for i, _ in every)
        backend = self.backend_for(device)
        scale = self._grad_scale
        if self._offload is not None:
            offload, host = self._offload, [p for _, params in parts for p in params]
            with backend.on_device(device):
                skip = self._prepare(backend, [], {}, (device, host) if skippable else None)
                found = {i: sums.norm(i).to(device) for i, _ in parts} if sums else {}

            def run(skip: Tensor | None) -> None:
                with backend.on_device(device):
                    offload.step(backend, parts, groups, state, skip, scale, found, inputs)

            return totals.Later(device, skip, run)
        with backend.on_device(device):
            skip = self._prepare(backend, tasks, ready, (device, far) if skippable else None)
            if sums is not None and sums.waiting and self._locals is not None:
                totals.of_parts(sums, backend, tasks, self._locals.whole, dealt)
            elif sums is not None and sums.waiting:
                totals.of_tasks(sums, backend, tasks)
            tasks = [task if sums is None else sums.given(task) for task in tasks]
            norms = {i: sums.norm(i).to(device) for i, _ in dealt} if sums else {}
        return totals.Job(
            backend,
            device,
            tasks,
            skip,
            scale,
            [
                Task((i, device), self.param_groups[i], params, self.state, norms.get(i), inputs)
                for i, params in dealt
            ],
            None if self._locals is None else self._locals.whole,
        )

    @property
    def _grad_scale(self) -> Tensor | None:
        """What gradients are divided by, where somebody set it by hand."""
        return getattr(self, "grad_scale", None)

    def _prepare(
        self,
        backend: Backend,
        tasks: list[Task],
        ready: Mapping[int, torch.device],
        look: tuple[torch.device, list[Tensor]] | None,
    ) -> Tensor | None:
        """Prepare all tasks; returns the flag by which the step is skipped.

        ready: groups whose tasks are prepared already; look: where Inf and NaN are looked for (of
        the tasks and of further tensors), None where they are not.
        """
        for task in tasks:
            if not (isinstance(task.key, tuple) and task.key[0] in ready):
                backend.prepare(task)
        skip: Tensor | None = getattr(self, "found_inf", None)
        if look is not None:
            device, far = look
            flag = torch.zeros((), dtype=torch.float32, device=device)
            for task in tasks:
                backend.find_nonfinite(task, flag)
            dense.find_nonfinite(far, flag)
            if self._locals is not None:
                flag = sharded.agree(flag, self._dtensors)
            self._count_skip(device, flag)
            skip = flag if skip is None else flag.maximum(skip.to(device).reshape(()))
        return skip

    def _count_skip(self, device: torch.device, flag: Tensor) -> None:
        if device not in self._skipped:
            self._skipped[device] = torch.zeros((), dtype=torch.int64, device=device)
        self._skipped[device].add_(flag.to(torch.int64))

    # ---------------------------------------------------------------- checkpoints, copies

    def state_dict(self) -> dict[str, Any]:
        """torch.optim's, with codes and scales as they are stored."""
        self._arrive()
        return super().state_dict()

    @unaffected
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore state bit for bit; raises ValueError for a state_dict of another program.

        torch's own version casts every state tensor to the parameter's dtype, which destroys
        codes and scales (measured), so the tensors are taken over as they are.
        """
        self._arrive()
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        self._take_over(*self._read(state_dict))
        for post in self._optimizer_load_state_dict_post_hooks.values():
            post(self)

    def _read(self, state_dict: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
        """Param groups and state of a state_dict as they are to be taken over; changes nothing."""
        checks.is_state_dict(state_dict)
        groups = copy.deepcopy(state_dict["param_groups"])
        stored = self._values.loaded(groups, self.param_groups, self.defaults)
        params = [p for g in self.param_groups for p in g["params"]]
        ids = [i for g in groups for i in g["params"]]
        by_id = dict(zip(ids, params, strict=True))
        formats = {i: f for g, f in zip(groups, stored, strict=True) for i in g["params"]}
        master = {p: g["master"] for g in self.param_groups for p in g["params"]}
        loaded: dict[Any, Any] = defaultdict(dict)
        for key, entry in state_dict["state"].items():
            if key not in by_id:
                loaded[key] = copy.deepcopy(entry)
                continue
            loaded[by_id[key]] = self._kept(
                states.take(self.program, by_id[key], entry, key, master[by_id[key]], formats[key])
            )
        for new, old in zip(groups, self.param_groups, strict=True):
            new["params"], new["master"] = old["params"], old["master"]
        return groups, loaded

    def _take_over(self, groups: list[dict[str, Any]], loaded: dict[Any, Any]) -> None:
        """Go on from what ``_read`` returned."""
        if not all(self._places.same(i, g["params"]) for i, g in enumerate(self.param_groups)):
            self._adopt()
        self.__setstate__({"state": loaded, "param_groups": groups})
        self._take_offsets()

    @unaffected
    @torch.no_grad()
    def load_moments(self, source: Any) -> None:
        """Go on where another optimizer stopped: its moments, step counts and hyperparameters.

        source: a state_dict of torch.optim (AdamW, Adam, SGD and their relatives), torchao,
            FlashOptim or bitsandbytes; or any such optimizer, or one of this library in another
            storage or with other passes, over as many parameters in the same groups.

        A moment is taken where both keep the same average (docs/using.md#in-and-out), encoded with
        unbiased rounding.  lr, weight_decay, eps and betas are taken as they are; of SGD's sum of
        gradients the average, with lr to match.  Raises ValueError or TypeError, with nothing
        changed, where a moment of this optimizer is not in the source, shapes differ or a
        hyperparameter is outside its range.
        """
        evaluation.refuse(self, "moments are loaded")
        self._arrive()
        exchange.load(self, source)

    def load_torch_adamw(self, state_dict: Mapping[str, Any]) -> None:
        """``load_moments`` of what torch.optim.AdamW, or a relative with its keys, has saved."""
        self.load_moments(state_dict)

    @unaffected
    @torch.no_grad()
    def torch_state_dict(self) -> dict[str, Any]:
        """The state in torch.optim's keys, fp32: for AdamW's ``load_state_dict``, or SGD's.

        Raises ValueError for moments that torch.optim does not have.
        """
        self._arrive()
        return exchange.torch_state(self)

    def master_weights(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """A copy of the model's state dict with every floating parameter in fp32.

        With ``master="split"`` bf16 parameters come out as their exact master weights, otherwise
        as they are.  Save it as an fp32 checkpoint of the model.
        """
        evaluation.refuse(self, "master weights are taken (model.state_dict() has these)")
        self._arrive()
        return masters.export(model, self.state)

    @unaffected
    @torch.no_grad()
    def load_master_weights(self, model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Load a state dict of the model, master weights exactly as given (an fp32 checkpoint).

        Raises RuntimeError like ``model.load_state_dict`` for missing, unknown or misshapen names.
        """
        evaluation.refuse(self, "weights are loaded")
        self._arrive()
        model.load_state_dict(weights)
        self._write_masters(model, weights)

    def _write_masters(self, model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
        """The master weights of those that are stepped here."""
        master = {p: g["master"] for g in self.param_groups for p in g["params"]}
        for name, p in masters.parameters(model):
            if p in master and name in weights and masters.layout(p, master[p]):
                if not self._has_state(p):
                    self._complete({p: self._new_state(p, master[p])})
                masters.write(p, self.state[p], weights[name])

    def __getstate__(self) -> dict[str, Any]:
        offsets = self._places.of(self.param_groups)
        self._arrive()
        offload = None if self._offload is None else self._offload.fresh()
        mine = {"backend": self.backend, "_offsets": offsets, "_offload": offload}
        return {**super().__getstate__(), **mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        offsets = state.get("_offsets")
        super().__setstate__(
            {k: v for k, v in state.items() if k not in ("_offsets", "_next_offset")}
        )
        self._reset()
        if offsets is not None:  # a copy; otherwise a state_dict that is loaded
            self._number = compiled.enter(self)
            self._places = Places()
            self._places.take(offsets)
            states.modernize(self.program, self.param_groups, self.state)
            seeds.enter(self)
