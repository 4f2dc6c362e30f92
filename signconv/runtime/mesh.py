"""Where a rank's part of a DTensor lies in the whole: any mesh, cut along any dimensions.

Mesh dimensions that cut one tensor dimension cut it one after the other, each as torch.chunk does.
``fully_shard`` over tensor parallelism places ``_StridedShard``: there the later mesh dimension,
the tensor-parallel one, cuts first.  State tensors are cut as their parameter is: rows along dim 0,
what there is once for several elements of a row along dim 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from signconv.runtime.errors import coded

#: First and end of a part along one dimension.
Span = tuple[int, int]


def is_sharded(x: object) -> bool:
    """Whether ``x`` is a DTensor, without importing those."""
    return hasattr(x, "device_mesh")


def placements(x: Any) -> Any:
    return x.placements


def lies(x: Any) -> tuple[Any, Any]:
    """On which mesh a DTensor is, and how: equal of two that are cut alike."""
    return mesh_of(x), placements(x)


def mesh_of(x: Any) -> Any:
    return x.device_mesh


def local(x: Any) -> Tensor:
    """This rank's part of a DTensor, sharing its memory; another tensor itself."""
    if not is_sharded(x):
        return x
    with torch.no_grad():
        return x.to_local()


def _strided(x: Any) -> int:
    """How many parts the mesh dimensions behind this one have cut before; 1 for a plain cut."""
    return int(getattr(x, "split_factor", 1))


def cuts(x: Tensor) -> dict[int, list[int]]:
    """Tensor dimension -> the mesh dimensions that cut it, the first to cut first.

    Raises ValueError for placements that are neither whole nor cut along a dimension.
    """
    mesh = mesh_of(x)
    found: dict[int, list[int]] = {}
    for i, placed in reversed([*enumerate(placements(x))]):
        if placed.is_replicate():
            continue
        if not hasattr(placed, "dim"):
            raise ValueError
        order = found.setdefault(placed.dim % x.dim(), [])
        sizes = [math.prod(mesh.size(j) for j in order[:n]) for n in range(len(order) + 1)]
        if _strided(placed) not in sizes:
            raise ValueError
        order.insert(sizes.index(_strided(placed)), i)
    return found


def _spans(x: Tensor, dim: int, size: int) -> list[Span]:
    """The part of every rank that shares a dimension of ``size``, in the order of the cuts."""
    parts = [(0, size)]
    for i in cuts(x).get(dim, []):
        ranks = mesh_of(x).size(i)
        parts = [_part(begin, end, r, ranks) for begin, end in parts for r in range(ranks)]
    return parts


def _part(begin: int, end: int, rank: int, ranks: int) -> Span:
    each = -(-(end - begin) // ranks)
    return min(begin + rank * each, end), min(begin + (rank + 1) * each, end)


def span(x: Tensor, dim: int, size: int) -> Span:
    """This rank's part of a dimension of ``size`` that is cut as dimension ``dim`` of ``x`` is."""
    order, mesh = cuts(x).get(dim, []), mesh_of(x)
    return part(size, [(mesh.get_local_rank(i), mesh.size(i)) for i in order])


def part(size: int, order: Sequence[tuple[int, int]]) -> Span:
    """One rank's part of a dimension of ``size``, by its number at each cut and into how many that
    cuts."""
    begin, end = 0, size
    for rank, ranks in order:
        begin, end = _part(begin, end, rank, ranks)
    return begin, end


def spans(x: Tensor, shape: Sequence[int]) -> list[Span]:
    """This rank's part of a tensor of global ``shape`` that is cut as ``x`` is."""
    return [span(x, dim, size) for dim, size in enumerate(shape)]


def part_of(whole: Tensor, x: Tensor) -> Tensor:
    """This rank's part of a whole tensor, as a view."""
    return whole[tuple(slice(*s) for s in spans(x, whole.shape))]


def placed_as(x: Tensor, dims: int) -> tuple[Any, ...]:
    """Placements of a tensor of so many dimensions that belongs to ``x``: whole along those that
    it has not."""
    from torch.distributed.tensor import Replicate

    return tuple(
        p if p.is_replicate() or p.dim % x.dim() < dims else Replicate() for p in placements(x)
    )


def cutting(x: Tensor) -> list[int]:
    """The mesh dimensions of several ranks that cut ``x``."""
    return sorted(i for order in cuts(x).values() for i in order if mesh_of(x).size(i) > 1)


def is_cut(x: Tensor) -> bool:
    """Whether several ranks share ``x``."""
    return bool(cutting(x))


def groups_of(x: Tensor) -> list[Any]:
    """The process groups whose ranks share ``x``, one for each mesh dimension that cuts it."""
    return [mesh_of(x).get_group(i) for i in cutting(x)]


def cut_along_rows(x: Tensor) -> Any | None:
    """The process group of a tensor that one mesh dimension cuts, along dim 0; else None."""
    found = cuts(x)
    plain = set(found) == {0} and len(found[0]) == 1
    return mesh_of(x).get_group(found[0][0]) if plain else None


def rows_begin_at(x: Tensor, multiple: int) -> bool:
    """Whether every rank's part of dim 0 begins at a multiple of so many."""
    return all(begin % multiple == 0 for begin, end in _spans(x, 0, x.shape[0]) if begin < end)


def columns_begin_at(x: Tensor, shares: Sequence[int]) -> bool:
    """Whether what there is once for so many elements of a row is cut with them: each of
    ``shares`` between the same elements as dim 1."""
    if 1 not in cuts(x):
        return True
    rest = math.prod(x.shape[2:])
    elements = [(begin * rest, end * rest) for begin, end in _spans(x, 1, x.shape[1])]
    for share in shares:
        numbers = _spans(x, 1, -(-x.shape[1] * rest // share))
        for (begin, end), here in zip(elements, numbers, strict=True):
            if begin == end:
                together = here[0] == here[1]
            else:
                together = begin % share == 0 and here == (begin // share, -(-end // share))
            if not together:
                return False
    return True


def check(p: Tensor, name: str) -> None:
    """Raise TypeError for a DTensor whose part is not known to be some elements of the whole."""
    try:
        mine = spans(p, p.shape)
    except ValueError:
        mine = []
    if [end - begin for begin, end in mine] != [*local(p).shape]:
        raise coded(
            TypeError,
            "SC419",
            f"{name} takes DTensors that are whole or cut into even parts along any dimensions, "
            f"and this one of shape {list(p.shape)} is placed {tuple(placements(p))} with a part "
            f"of shape {list(local(p).shape)}: redistribute it",
        )
