"""The state of several optimizers as one mapping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from itertools import chain
from typing import Any

import torch


class Joined(MutableMapping[Any, Any]):
    """State of several optimizers as one mapping, a defaultdict as each of theirs."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self._parts = [*parts]

    def _home(self, key: Any) -> MutableMapping[Any, Any]:
        """The state that has a key, or is to have it: of no parameter, the first's."""
        held = next((part.state for part in self._parts if key in part.state), None)
        if held is None:
            groups = ((part, group) for part in self._parts for group in part.param_groups)
            held = next((o.state for o, g in groups if any(p is key for p in g["params"])), None)
        return self._parts[0].state if held is None else held

    def __getitem__(self, key: Any) -> Any:
        return self._home(key)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._home(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._home(key)[key]

    def __contains__(self, key: object) -> bool:
        return any(key in part.state for part in self._parts)

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(part.state for part in self._parts)

    def __len__(self) -> int:
        return sum(len(part.state) for part in self._parts)

    def get(self, key: Any, default: Any = None) -> Any:
        return next((o.state[key] for o in self._parts if key in o.state), default)

    def pop(self, key: Any, *default: Any) -> Any:
        return self._home(key).pop(key, *default)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        return self._home(key).setdefault(key, default)

    def __repr__(self) -> str:
        return repr(dict(self.items()))
