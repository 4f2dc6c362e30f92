"""Where the random numbers of each parameter start: an offset, by its position among the groups.

Params may be put into the groups by hand.  What is not known yet gets, at its first step, the sum
of the (global) sizes before it, as if the optimizer were built from the groups as they stand, or
what follows all others where that is taken.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.formats import BLOCK


def room(p: Tensor) -> int:
    """Elements that a parameter keeps for itself: rows of 32."""
    return -(-p.numel() // BLOCK) * BLOCK


class Places:
    """The known parameters of one optimizer; holds none of them alive."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._seen: list[list[int]] = []
        self._sum = self._end = 0

    def move(self, further: Mapping[Tensor, int]) -> None:
        """Let known parameters start so many elements further on."""
        for p, by in further.items():
            if p in self:
                ref, start = self._of[id(p)]
                self._of[id(p)] = ref, start + by

    def offset(self, p: Tensor) -> int:
        """Raises KeyError for a parameter that is not known."""
        return self._of[id(p)][1]

    def __contains__(self, p: Tensor) -> bool:
        return id(p) in self._of

    def same(self, index: int, params: Sequence[Tensor]) -> bool:
        """Whether the group at ``index`` holds what it held when all were last looked at."""
        return index < len(self._seen) and [*map(id, params)] == self._seen[index]

    def fewer(self, groups: Sequence[Any]) -> bool:
        """Whether groups were taken away."""
        return len(groups) < len(self._seen)

    def append(self, params: Sequence[Tensor]) -> None:
        """Enter the parameters of a group that was just added, after all others."""
        self._sum = self._end = max(self._sum, self._end)
        for p in params:
            self._enter(p, self._end)
            self._sum += room(p)
        self._seen.append([*map(id, params)])

    def unknown(self, groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """What was put into the groups by hand."""
        return [p for g in groups for p in g["params"] if id(p) not in self._of]

    def settle(
        self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, dict[str, Any]]
    ) -> None:
        """Enter what is unknown, and forget what has left.

        State that was moved to a new parameter by hand brings its offset, where that is free.
        """
        everything = [p for g in groups for p in g["params"]]
        known = {id(p): self._of[id(p)] for p in everything if id(p) in self._of}
        self._of, self._sum = known, 0
        held = {id(p): p for p in everything}
        taken = [(known[i][1], known[i][1] + room(held[i])) for i in known]
        self._end = max((end for _, end in taken), default=0)
        for p in everything:
            if id(p) not in self._of:
                entry = state.get(p) or {}
                start = int(entry["offset"]) if "offset" in entry else self._sum
                if any(a < start + room(p) and start < b for a, b in taken):
                    start = self._end
                if "offset" in entry:
                    entry["offset"] = torch.tensor(start, dtype=torch.int64, device="cpu")
                self._enter(p, start)
                taken.append((start, start + room(p)))
            self._sum += room(p)
        self._seen = [[*map(id, g["params"])] for g in groups]

    def take(self, offsets: Mapping[Tensor, int]) -> None:
        """Enter parameters with the offsets of a checkpoint or of a copy."""
        for p, start in offsets.items():
            self._enter(p, start)

    def of(self, groups: Sequence[Mapping[str, Any]]) -> dict[Tensor, int]:
        """The offsets of all known parameters of the groups."""
        return {p: self.offset(p) for g in groups for p in g["params"] if p in self}

    def _enter(self, p: Tensor, start: int) -> None:
        key, me = id(p), weakref.ref(self)

        def forget(gone: weakref.ref[Tensor]) -> None:
            mine = me()
            if mine is not None and key in mine._of and mine._of[key][0] is gone:
                del mine._of[key]
                mine._seen = [[] for _ in mine._seen]  # another may get its id

        self._of[key] = weakref.ref(p, forget), start
        self._end = max(self._end, start + room(p))
