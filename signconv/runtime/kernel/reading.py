"""How kernels read the values of stages: columns of the tables, and which kernel steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from signconv.runtime import axes, formats
from signconv.runtime.axes import ELEMENTS, STRIDED
from signconv.runtime.formats import BLOCK
from signconv.runtime.kernel import launch, step
from signconv.runtime.kernel import walk as kernel_of_walks
from signconv.runtime.program import OptimizerProgram, Sums

#: Blocks that a program walks down together, at most.
MOST = 4


def across(program: OptimizerProgram, shape: Sequence[int]) -> int:
    """How many blocks of 32 elements read and make values together: dimensions that are reduced one
    next to the other, or those behind others, are multiples of them.  0 where none are."""
    if not program.staged or program.totals is not None or math.prod(shape) % BLOCK:
        return 0  # totals are summed by the step kernel alone
    widths = [MOST]
    overs = {r.over for r in program.reductions} | {k.over for k in program.kept}
    for over in overs - {"", ELEMENTS}:
        _, reduced, behind = axes.view(shape, ELEMENTS, over)
        n = behind if over in STRIDED else reduced
        widths.append(0 if n % BLOCK else math.gcd(n // BLOCK, MOST))
    if not overs & STRIDED:
        return min(1, *widths)
    return min(widths)


class Layout:
    """Columns of the tables that a program's stages take, whatever the tensors."""

    def __init__(self, program: OptimizerProgram) -> None:
        self.program = program
        self.over = {f"{k.name}_prev": k.over for k in program.kept}
        self.over |= dict.fromkeys(program.shapes, "")
        for stage in program.stages:
            self.over |= {r.name: r.over for s in stage.sums for r in s.results}
            self.over |= {name: d.over for d in stage.derived for name in d.outputs}
        self.signs = {r.name for r in program.reductions if r.kind == "msign"}
        self.columns = {name: i for i, name in enumerate(self.over)}
        self.maps: dict[tuple[str, str], int] = {}
        for stage in program.stages:
            for s in stage.sums:
                self.reading(s.reads, s.source)
                for r in s.results:
                    if s.source == ELEMENTS and r.over in STRIDED:
                        self._map(ELEMENTS, r.over)
            for d in stage.derived:
                self.reading(d.reads, d.over)
        self.reading(program.reads, ELEMENTS)

    def _map(self, place: str, over: str) -> int:
        return self.maps.setdefault((place, over), len(self.maps))

    def walk(self, s: Sums | None = None) -> str:
        """Which strided dimensions a pass, or the step, walks along: those that it sums over, or of
        which it reads values."""
        summed = () if s is None else (r.over for r in s.results)
        names = self.program.reads if s is None else s.reads
        every = [*summed, *(self.over[name] for name in names)]
        return next((x for x in every if x in STRIDED), "")

    def reading(self, names: Sequence[str], place: str, walk: str = "") -> dict[str, Any]:
        """How what is at ``place`` reads values, as constants of its kernel: their columns, their
        maps, and the kind of each (``formats``)."""
        columns, maps, kinds = [], [], []
        for name in names:
            over = self.over[name]
            columns.append(self.columns[name])
            if not over:
                kind, which = formats.ONE, 0
            elif name in self.signs:
                kind, which = formats.READ_SIGN, 0
            elif over == place:
                kind, which = formats.SAME, 0
            else:
                kind = formats.READ_STRIDED if over in STRIDED else formats.READ_CONTIGUOUS
                kind = formats.READ_WALKED if over == walk else kind
                which = self._map(place, over)
            maps.append(which)
            kinds.append(kind)
        return {
            "VALUES": len(self.columns),
            "MAP_COUNT": len(self.maps),
            "READS": tuple(columns),
            "READ_MAPS": tuple(maps),
            "READ_KINDS": tuple(kinds),
        }


def step_kernel(
    program: OptimizerProgram, variant: launch.Variant, scaled: bool
) -> tuple[Any, dict[str, Any]]:
    """The kernel of a step, and its constants."""
    if not program.staged:
        return step.step_kernel, launch.step_constants(program, variant, scaled)
    layout = Layout(program)
    walk = layout.walk() if variant.across else ""
    reading = layout.reading(program.reads, ELEMENTS, walk)
    given = launch.step_constants(program, variant, scaled, reading)
    if not walk:
        return step.step_kernel, given
    # All blocks are whole, and no totals are summed
    for name in ("BLOCKS", "BY_ROW", "CUT", "ROWS", "TAIL", "TILES", *launch.OF_TOTALS):
        del given[name]
    given |= {"WALK": layout.maps[ELEMENTS, walk], "ACROSS": variant.across}
    # Eight neighbours are one thread's, whatever the width
    given["EIGHT"] = variant.param == torch.bfloat16 and variant.param_format == formats.PLAIN
    return kernel_of_walks.walk_kernel, {**given, "num_warps": variant.across}
