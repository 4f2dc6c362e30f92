"""What the last step looked at, so that a few calls tell whether all of it is still so."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import checks, mesh
from signconv.runtime import state as states
from signconv.runtime.errors import coded
from signconv.runtime.memory import Watch
from signconv.runtime.program import OptimizerProgram

State = Mapping[Tensor, dict[str, Tensor]]
#: The parameters of a step: device -> (index of a param group, those of its parameters there).
Work = dict[torch.device, list[tuple[int, list[Tensor]]]]


class Checked:
    """The tensors of an optimizer as its last step found them right; holds none of them alive."""

    def __init__(self, program: OptimizerProgram, name: str, host: bool = False) -> None:
        self._program, self._name, self._host = program, name, host
        self._names, self._needed = states.names(program), states.needed(program)
        self._watches: dict[int, Watch] = {}  # by the index of a param group
        self._addresses: list[int] = []

    def has_state(self, p: Tensor, state: State) -> bool:
        """Whether it was stepped or loaded; what others keep in ``state[p]`` does not count."""
        entry = state.get(p)
        return entry is not None and not self._needed.isdisjoint(entry)

    def group(
        self,
        index: int,
        group: Mapping[str, Any],
        active: list[Tensor],
        state: State,
        dtensors: bool,
    ) -> None:
        """Raise for a parameter, gradient or state that cannot be stepped, before any is written.

        One call compares them with those of the last step; what is new is looked at one by one.
        """
        watch = self._watches.get(index)
        if watch is not None and watch.same(self._watched(active, state, dtensors)):
            return
        self._watches.pop(index, None)
        for p in active:
            assert p.grad is not None
            checks.memories(p, p.grad, self._name)
            if self.has_state(p, state):
                states.mend(self._program, state[p], p)
                layout = states.layout(self._program, p, group["master"])
                checks.states(state[p], layout, p, self._name, self._host)
        self._watches[index] = Watch(self._watched(active, state, dtensors))

    def _watched(self, active: list[Tensor], state: State, dtensors: bool) -> list[Any]:
        """Parameters, gradients, all of their state, and of DTensors this rank's parts."""
        tensors: list[Any] = [*active, *(p.grad for p in active)]
        for p in active:
            entry = state.get(p)
            if entry:
                tensors += [entry.get(n) for n in self._names if n in entry]
        if dtensors:
            tensors += [x.to_local() for x in tensors if mesh.is_sharded(x)]
        return tensors

    def addresses(self, params: list[Tensor], dtensors: bool) -> None:
        """Raise where memory was freed, or parameters came to share it, since the last step."""
        parts = [*map(mesh.local, params)] if dtensors else params
        grads = [mesh.local(p.grad) for p in params]
        if 0 in map(Tensor.data_ptr, grads):
            for p in params:
                assert p.grad is not None
                checks.memories(p, p.grad, self._name)
        found = [*map(Tensor.data_ptr, parts)]
        if found != self._addresses:
            self._addresses = []
            checks.apart([x for x in parts if x.numel()], self._name)
            self._addresses = found


class Promise:
    """What steps inside ``frozen()`` do not look at again.

    Memory that is freed, and parameters that come or go, are noticed all the same: that costs next
    to nothing.
    """

    def __init__(
        self,
        work: Work,
        ready: Mapping[int, torch.device],
        stepped: list[Tensor],
        groups: Sequence[Mapping[str, Any]],
        state: State,
        name: str,
    ) -> None:
        self.work, self.ready, self.stepped = work, ready, stepped
        self._name = name
        self._groups = [(g["params"], [*g["params"]]) for g in groups]
        self._gone: list[Any] = []
        entries = [x for p in stepped for x in state[p].values() if isinstance(x, Tensor)]
        tensors = [*stepped, *(p.grad for p in stepped if p.grad is not None), *entries]
        storages = {s._cdata: s for s in (x.untyped_storage() for x in tensors)}
        self._alive = [weakref.ref(s, self._gone.append) for s in storages.values()]

    def keep(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Raise RuntimeError where it was broken, before anything is written."""
        same = len(groups) == len(self._groups) and all(
            g["params"] is held and len(held) == len(were) and all(map(is_, held, were))
            for g, (held, were) in zip(groups, self._groups, strict=True)
        )
        if same and not self._gone:
            return
        raise coded(
            RuntimeError,
            "SC439",
            f"{self._name}: since the last step inside frozen() "
            + (
                "memory of a parameter, a gradient or state was freed: keep gradients with "
                "zero_grad(set_to_none=False)"
                if same
                else "a param group got other parameters: change groups"
            )
            + ", or step outside of frozen()",
        )


def by_device(params: Sequence[Tensor]) -> dict[torch.device, list[Tensor]]:
    """Parameters device by device."""
    found: dict[torch.device, list[Tensor]] = {}
    for p in params:
        found.setdefault(p.device, []).append(p)
    return found
