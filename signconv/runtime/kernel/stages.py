"""Stages of a bucket's step on a GPU: tables of their values, and the launches before the step.

All tensors of a bucket go through every launch together.  Values live in one buffer of the
bucket's, partial results in another that each pass writes anew; kept states are copied to their
tensors by the last launch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from signconv.runtime import axes, formats, tables
from signconv.runtime.axes import ELEMENTS, STRIDED
from signconv.runtime.extras import Kinds
from signconv.runtime.formats import BLOCK, SEGMENT
from signconv.runtime.kernel import folds, launch, passes
from signconv.runtime.kernel import walk as kernel_of_walks
from signconv.runtime.kernel.launch import Launcher
from signconv.runtime.kernel.reading import Layout, step_kernel
from signconv.runtime.msign import TOGETHER, matrix_sign
from signconv.runtime.program import (
    REDUCTION_KINDS,
    OptimizerProgram,
    Reduction,
    Sums,
    of_shape,
)

#: Numbers that a program of ``folds.derive`` and ``folds.commit`` works on.
LINE = 256
#: Numbers that a program of ``folds.fold`` reads: next to each other at most so many of a result.
FOLDED, LONGEST, HIGHEST = 4096, 1024, 64
#: As how many of them a launch counts.
LAUNCH = 1 << 19

View = tuple[int, int, int]
Launch = Callable[[Tensor, Tensor, Tensor], None]


def matrices_apart(params: Sequence[Tensor]) -> list[list[Tensor]]:
    """Parameters in as many parts as keep what is found of their elements between launches within
    TOGETHER numbers, those of one shape next to each other."""
    made: list[list[Tensor]] = []
    size = TOGETHER
    for p in sorted(params, key=lambda p: tuple(p.shape)):
        if size + p.numel() > TOGETHER:
            made.append([])
            size = 0
        made[-1].append(p)
        size += p.numel()
    return made


class Stages:
    """Tables and launches for tensors of one bucket.

    shapes: of the tensors; blocks: how many each has; buffer: where values lie between launches,
    ``room`` numbers at least, which other buckets may write once these have stepped.
    """

    def __init__(
        self,
        program: OptimizerProgram,
        device: torch.device,
        shapes: Sequence[Sequence[int]],
        blocks: Sequence[int],
        variant: launch.Variant,
        buffer: Tensor | None = None,
    ) -> None:
        self.program, self.device, self.variant = program, device, variant
        self.shapes, self.block_counts = shapes, blocks
        self.layout = Layout(program)
        kept, given = len(program.kept), len(program.shapes)
        sizes = _sizes(self.layout, shapes)
        self.starts, end = _starts(self.layout, shapes)
        if buffer is None:
            buffer = torch.empty(end, dtype=torch.float32, device=device)
        self.buffer = buffer
        numbers = [[of_shape(name, s) for name in program.shapes] for s in shapes]
        self.numbers = torch.tensor(numbers, dtype=torch.float32, device="cpu").to(device)
        base, known = self.buffer.data_ptr(), self.numbers.data_ptr()
        self.addresses = [[base + 4 * x for x in row] for row in self.starts]
        for j, row in enumerate(self.addresses):
            row[kept : kept + given] = [known + 4 * (j * given + i) for i in range(given)]
        self.values = self._table(self.addresses)
        maps = [
            [x for pair in self.layout.maps for x in _span(axes.view(s, *pair))] for s in shapes
        ]
        self.maps = self._table(maps or [[0]] * len(shapes))
        self.scratch = torch.empty(0, dtype=torch.float32, device=device)
        self._end = self._most = 0  # of the scratch that a pass takes
        self.counts = self._table([row[:kept] for row in sizes])
        self.kept_chunks = self._chunks([-(-max(row[:kept], default=0) // LINE) for row in sizes])
        self.launches: dict[tuple[bool, Kinds], list[Launch]] = {}
        self.walk_chunks: Tensor | None = None
        self.made: list[Launcher] = []
        self._commit: Launcher | None = None

    @staticmethod
    def room(program: OptimizerProgram, shapes: Sequence[Sequence[int]]) -> int:
        """How many fp32 numbers values take between launches."""
        return _starts(Layout(program), shapes)[1]

    def upload(self, kept: Sequence[Sequence[int]]) -> None:
        """New addresses of the kept states, tensor by tensor."""
        self.addresses = [
            [*states, *row[len(states) :]] for states, row in zip(kept, self.addresses, strict=True)
        ]
        host = torch.tensor(self.addresses, dtype=torch.int64, device="cpu")
        if self.device.type == "cuda":
            host = host.pin_memory()
        self.values.copy_(host, non_blocking=True)

    def run(
        self, table: Tensor, scalars: Tensor, keys: Tensor, scaled: bool, extras: Kinds
    ) -> None:
        """All that comes before the step; extras: how extra inputs come to it."""
        self.prepare(scaled, extras)
        for run in self.launches[scaled, extras]:
            run(table, scalars, keys)

    def prepare(self, scaled: bool, extras: Kinds = ()) -> None:
        """Make the launches, once."""
        if (scaled, extras) in self.launches:
            return
        variant = replace(self.variant, extras=extras)
        if not self.scratch.numel():
            self._launches(variant, scaled)  # to see how much room they take
            self.scratch = torch.empty(self._most, dtype=torch.float32, device=self.device)
        self.launches[scaled, extras] = self._launches(variant, scaled)

    def commit(self, keys: Tensor) -> None:
        """Keep the new states; after the step, which reads the former ones."""
        if not self.program.kept:
            return
        if self._commit is None:
            sources = tuple(self.layout.columns[k.name] for k in self.program.kept)
            given = {"VALUES": len(self.layout.columns), "SOURCES": sources, "N": LINE}
            self._commit = Launcher(folds.commit, len(self.kept_chunks), {**given, **_OPTIONS})
        self._commit(self.kept_chunks, keys, self.values, self.counts)

    def step_launcher(self, variant: launch.Variant, scaled: bool, programs: int) -> Launcher:
        """The step's; programs: how many it has where it goes through elements as they lie."""
        kernel, given = step_kernel(self.program, variant, scaled)
        if kernel is kernel_of_walks.walk_kernel:
            if self.walk_chunks is None:
                self.walk_chunks = self._walk_chunks(self.layout.walk())
            programs = len(self.walk_chunks)
        return Launcher(kernel, programs, given)

    def step_tables(self, chunks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the step's launch takes: chunks, values, maps."""
        return chunks if self.walk_chunks is None else self.walk_chunks, self.values, self.maps

    # ---------------------------------------------------------------- launches

    def _launches(self, variant: launch.Variant, scaled: bool) -> list[Launch]:
        made: list[Launch] = []
        self.made = []
        for stage in self.program.stages:
            for s in stage.sums:
                inner = s.source != ELEMENTS
                made += self._inner(s) if inner else self._pass(s, variant, scaled)
            for d in stage.derived:
                targets = [[self._address(j, name) for name in d.outputs] for j in self._all]
                made.append(self._derive(d.over, d.kernel, d.reads, targets))
        return made

    @property
    def _all(self) -> range:
        return range(len(self.shapes))

    def _address(self, tensor: int, name: str) -> int:
        return self.addresses[tensor][self.layout.columns[name]]

    def _pass(self, s: Sums, variant: launch.Variant, scaled: bool) -> list[Launch]:
        """A pass over elements: a launch, or one for each kind of strided dimensions."""
        walks = [x for x in dict.fromkeys(r.over for r in s.results) if x in STRIDED]
        every = [*range(len(s.results))]
        along = walks or [x for x in (self.layout.walk(s),) if x]
        if not self.variant.across or not along:
            return self._launch_pass(s, every, "", variant, scaled)
        made: list[Launch] = []
        matrices = [i for i in every if s.results[i].kind == "msign"]
        if matrices:  # a number for each element, as they lie
            made += self._launch_pass(s, matrices, "", variant, scaled)
        if not walks:
            rest = [i for i in every if i not in matrices]
            return made + (self._launch_pass(s, rest, along[0], variant, scaled) if rest else [])
        for i, walk in enumerate(walks):
            mine = [
                j
                for j, r in enumerate(s.results)
                if r.over == walk or (i == 0 and r.over not in STRIDED and j not in matrices)
            ]
            made += self._launch_pass(s, mine, walk, variant, scaled)
        return made

    def _launch_pass(
        self, s: Sums, wanted: Sequence[int], walk: str, variant: launch.Variant, scaled: bool
    ) -> list[Launch]:
        self._end = 0
        shape = launch.pass_shape()
        modes, views = [], []
        for i, r in enumerate(s.results):
            mode, view = (
                self._mode(r, walk, shape.rows) if i in wanted else (formats.BY_NOTHING, [])
            )
            modes.append(mode)
            views.append(view)
        counts = [[math.prod(v[j]) if v else 0 for v in views] for j in self._all]
        targets = self._room(counts)
        for i in wanted:
            if s.results[i].kind == "msign":
                for j in self._all:
                    targets[j][i] = self._address(j, s.results[i].name)
        given = {
            **launch.tile_constants(self.program, variant, scaled),
            **self.layout.reading(s.reads, ELEMENTS, walk),
            "SUMMANDS": s.kernel,
            "MODES": tuple(modes),
            "REDUCTIONS": tuple(REDUCTION_KINDS.index(r.kind) for r in s.results),
        }
        if walk:
            chunks = self._walk_chunks(walk)
            given["WALK"] = self.layout.maps[ELEMENTS, walk]
            del given["BY_ROW"]  # rows end in whole blocks there
            # A thread reads 16 numbers of a tile: more on their way at once, fewer shuffles
            given |= {"ACROSS": variant.across, "num_warps": max(1, variant.across // 2)}
            kernel: Any = kernel_of_walks.column_kernel
        else:
            chunks = self._chunks([-(-n // shape.chunk) for n in self.block_counts])
            given |= {"BLOCKS": variant.across > 0, "ROWS": shape.rows, "TILES": shape.tiles}
            kernel = passes.reduce_kernel
        run = self._launcher(kernel, len(chunks), given)
        places = self._table(targets)

        def start(table: Tensor, scalars: Tensor, keys: Tensor) -> None:
            run(table, chunks, scalars, self.values, self.maps, places)

        made: list[Launch] = [start]
        for i in wanted:
            r = s.results[i]
            if r.kind == "msign":
                made.append(self._matrix_signs(r))
                continue
            sources = [targets[j][i] for j in self._all]
            steps = modes[i] == formats.BY_ELEMENT and r.over in STRIDED
            made += self._fold(r, ELEMENTS, sources, views[i], steps)
        return made

    def _mode(self, r: Reduction, walk: str, rows: int) -> tuple[int, list[View]]:
        """What a pass stores of a result, and as what the stored numbers are seen."""
        if r.kind == "msign":
            return formats.BY_ELEMENT, []  # where its values are
        spans = [axes.view(x, ELEMENTS, r.over) for x in self.shapes]
        if walk and r.over == walk:
            return formats.BY_COLUMN, [(a, -(-k // SEGMENT), b) for a, k, b in spans]
        if self.variant.across and not walk and all(k % (rows * BLOCK) == 0 for _, k, _ in spans):
            return formats.BY_TILE, [(a, k // (rows * BLOCK), 1) for a, k, _ in spans]
        if self.variant.across and (walk or r.over):
            width = BLOCK * (self.variant.across if walk else 1)
            return formats.BY_BLOCK, [(a, k // width, 1) for a, k, _ in spans]
        if not r.over:
            return formats.BY_TILE, [(1, -(-n // rows), 1) for n in self.block_counts]
        return formats.BY_ELEMENT, spans

    def _matrix_signs(self, r: Reduction) -> Launch:
        """From the elements that a pass left to the signs of their matrices, bf16 at the same
        place."""
        column = self.layout.columns[r.name]
        found: dict[tuple[int, ...], list[int]] = {}
        for shape, row in zip(self.shapes, self.starts, strict=True):
            view = axes.matrices(shape, r.matrix)
            # One of each tensor go together: all lie equally far apart
            key = view if view[0] == 1 else (*view, row[column])
            found.setdefault(key, []).append(row[column])
        halves, batches = self.buffer.view(torch.bfloat16), []
        for (count, rows, columns, *_), starts in found.items():
            size = rows * columns
            far = _whole(size) if count == 1 else size
            view = count * len(starts), rows, columns
            if size:
                x = self.buffer.as_strided(view, (far, columns, 1), starts[0])
                far = 2 * far if count == 1 else far
                batches.append((x, halves.as_strided(view, (far, columns, 1), 2 * starts[0])))

        def start(*_: Tensor) -> None:
            for x, signs in batches:
                matrix_sign(x, r.how, signs)

        return start

    def _walk_chunks(self, walk: str) -> Tensor:
        width = BLOCK * self.variant.across
        spans = [axes.view(x, ELEMENTS, walk) for x in self.shapes]
        return self._chunks([a * -(-k // SEGMENT) * (b // width) for a, k, b in spans])

    def _inner(self, s: Sums) -> list[Launch]:
        """Reductions of values."""
        self._end = 0
        sizes = [math.prod(axes.broadcast(x, s.source)) for x in self.shapes]
        targets = self._room([[n] * len(s.results) for n in sizes])
        made = [self._derive(s.source, s.kernel, s.reads, targets)]
        for i, r in enumerate(s.results):
            views = [axes.view(x, s.source, r.over) for x in self.shapes]
            made += self._fold(r, s.source, [row[i] for row in targets], views, False)
        return made

    def _derive(
        self, place: str, function: Any, reads: Sequence[str], targets: list[list[int]]
    ) -> Launch:
        sizes = [math.prod(axes.broadcast(x, place)) for x in self.shapes]
        chunks = self._chunks([-(-n // LINE) for n in sizes])
        given = {
            **self.layout.reading(reads, place),
            "FUNCTION": function,
            "COLUMNS": tables.columns(self.program),
            "OUTPUTS": len(self.program.outputs),
            "RESULTS": len(targets[0]),
            "CODEC": self.variant.codec,
            "N": LINE,
            **_OPTIONS,
        }
        run = self._launcher(folds.derive, len(chunks), given)
        places = self._table([[n, *row] for n, row in zip(sizes, targets, strict=True)])

        def start(table: Tensor, scalars: Tensor, keys: Tensor) -> None:
            run(table, chunks, scalars, self.values, self.maps, places)

        return start

    def _fold(
        self, r: Reduction, source: str, sources: list[int], views: list[View], steps: bool
    ) -> list[Launch]:
        """From partial results to a value; ``steps``: nothing is summed yet of a strided
        dimension."""
        made: list[Launch] = []
        lengths = [axes.view(x, source, r.over)[1] for x in self.shapes]
        along = all(behind == 1 for _, _, behind in views) and not steps
        while True:
            n = SEGMENT if steps else _group(views, LONGEST if along else HIGHEST)
            after = [(a, -(-k // n), b) for a, k, b in views]
            last = all(k == 1 for _, k, _ in after)
            counts = [math.prod(v) for v in after]
            if last:
                targets = [self._address(j, r.name) for j in self._all]
            else:
                targets = [row[0] for row in self._room([[c] for c in counts])]
            width = max(1, FOLDED // n) if along else 32
            rows = [
                [s, t, k, b, c, length]
                for s, t, (_, k, b), c, length in zip(
                    sources, targets, views, counts, lengths, strict=True
                )
            ]
            made.append(self._folding(rows, r.kind, last, along, steps, n, width))
            if last:
                return made
            sources, views, steps = targets, after, False

    def _folding(
        self,
        rows: list[list[int]],
        kind: str,
        last: bool,
        along: bool,
        steps: bool,
        n: int,
        width: int,
    ) -> Launch:
        chunks = self._chunks([-(-row[4] // width) for row in rows])
        given = {
            "KIND": REDUCTION_KINDS.index(kind),
            "LAST": last,
            "ALONG": along,
            "SEGMENTS": steps,
            "SHORT": all(-(-c // -(-k // n)) * k < 2**31 for _, _, k, _, c, _ in rows),
            "N": n,
            "WIDTH": width,
            **_OPTIONS,
            # What lies apart is summed in the registers of one thread
            "num_warps": 4 if along else 1,
        }
        run = self._launcher(folds.fold, len(chunks), given)
        table = self._table(rows)
        return lambda *_: run(table, chunks)

    def _launcher(self, kernel: Any, programs: int, given: dict[str, Any]) -> Launcher:
        self.made.append(Launcher(kernel, programs, given))
        return self.made[-1]

    # ---------------------------------------------------------------- memory

    def _room(self, counts: list[list[int]]) -> list[list[int]]:
        """Addresses of so many fp32 numbers for every tensor's results, until the next pass."""
        made = []
        base = self.scratch.data_ptr()
        for row in counts:
            mine = []
            for n in row:
                mine.append(base + 4 * self._end)
                self._end += -(-n // 4) * 4
            made.append(mine)
        self._most = max(self._most, self._end)
        return made

    def _table(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device="cpu").to(self.device)

    def _chunks(self, counts: list[int]) -> Tensor:
        return torch.stack(tables.chunks(counts), dim=1).to(torch.int32).to(self.device)


def _sizes(layout: Layout, shapes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of every value of every tensor."""
    return [[math.prod(axes.broadcast(s, over)) for over in layout.over.values()] for s in shapes]


def _starts(layout: Layout, shapes: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
    """Where values begin, tensor by tensor, and where all of them end: matrices of one shape behind
    each other; states and shapes lie elsewhere."""
    sizes = _sizes(layout, shapes)
    elsewhere = len(layout.program.kept) + len(layout.program.shapes)
    starts, end = [[0] * len(layout.over) for _ in shapes], 0
    by_shape = sorted(range(len(shapes)), key=lambda j: tuple(shapes[j]))
    for i, over in enumerate(layout.over.values()):
        if i < elsewhere:
            continue
        for j in by_shape if over == ELEMENTS else range(len(shapes)):
            starts[j][i] = end
            end += _whole(sizes[j][i])
    return starts, end


def _whole(n: int) -> int:
    """Up to a whole block."""
    return -(-n // BLOCK) * BLOCK


def _span(view: View) -> tuple[int, int]:
    return view[1] * view[2], view[2]


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _group(views: Sequence[View], most: int) -> int:
    """How many numbers a fold reduces at once: a power of two for which it and those after it read
    the fewest, empty places too."""

    def places(n: int) -> int:
        found, left = 0, [(a * b, k) for a, k, b in views]
        while True:
            left = [(m, -(-k // n)) for m, k in left]
            found += sum(m * k * n for m, k in left) + LAUNCH
            if all(k == 1 for _, k in left):
                return found
            n = min(n, _power(max(k for _, k in left)))

    longest = _power(max(k for _, k, _ in views))
    return min((1 << i for i in range(1, max(2, min(longest, most).bit_length()))), key=places)


_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
