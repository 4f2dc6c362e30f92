"""The table of tensors: numbered once, read by every kernel where it is written."""

from __future__ import annotations

import pytest
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from torch import Tensor

import signconv
from signconv.runtime import state, tables
from signconv.runtime.compat import tl, triton
from signconv.runtime.formats import CHECK, MASTER, PLAIN, SPLIT, WHOLE
from signconv.runtime.kernel import constants, step
from signconv.runtime.tables import Column
from tests.support import generated_classes

PROGRAM = AdamWStoSign.program


def test_columns_are_numbered_once_and_without_gaps() -> None:
    assert [int(c) for c in Column] == list(range(len(Column)))
    assert len(Column.__members__) == len(Column), "a name for a column that another one has"
    assert max(Column) is Column.STATE, "the width counts the pointers to state behind it"


def test_kernels_read_the_columns_of_the_table() -> None:
    known = {n: c for n, c in vars(constants).items() if n.startswith("COLUMN_")}
    assert {n: c.value for n, c in known.items()} == {f"COLUMN_{c.name}": int(c) for c in Column}


@pytest.mark.parametrize(
    ("stored", "param_format", "names"),
    [
        ("fp8", PLAIN, ["m", "m_scale", "v", "v_scale"]),
        ("fp32", PLAIN, ["m", "m", "v", "v"]),
        ("fp8", SPLIT, ["m", "m_scale", "v", "v_scale", MASTER, CHECK]),
        ("m=fp8,v=fp32", WHOLE, ["m", "m_scale", "v", "v", MASTER, MASTER]),
    ],
)
def test_two_columns_for_every_stored_moment(
    stored: str, param_format: int, names: list[str]
) -> None:
    program = signconv.compile("adamw", convert="stosign", state=stored).program
    assert tables.state_names(program, param_format) == names


@pytest.mark.parametrize("name", generated_classes())
def test_a_row_has_room_for_what_is_stored_and_for_no_more(name: str) -> None:
    """A power of two of columns; and every name is one of a state entry, with whole and partial
    blocks and master weights."""
    program = generated_classes()[name].program
    width = tables.width(len(program.moments))
    for shape, param_format in (((4, 32), SPLIT), ((4, 33), WHOLE)):
        p = torch.zeros(shape, dtype=torch.bfloat16)
        names = tables.state_names(program, param_format)
        used = Column.STATE + len(names)
        assert width // 2 < used <= width and width.bit_count() == 1
        assert set(names) <= state.create(program, p, "split", 0).keys()
    p = torch.zeros(4, 32)
    names = tables.state_names(program)
    stored = {m.name for m in program.moments}
    entry = state.create(program, p, None, 0).keys() - {"step", "offset"}
    entry -= {k.name for k in program.kept}  # their addresses are among the values of stages
    assert set(names) == entry - {n for n, _ in program.scalar_states} and stored <= set(names)


@pytest.mark.parametrize("counts", [[1], [3, 1, 2], [1, 1, 1], [2, 0, 1], [5, 7]])
def test_chunks_name_every_chunk_of_every_tensor_once(counts: list[int]) -> None:
    tensor_of, within = tables.chunks(counts)
    assert tensor_of.dtype == within.dtype == torch.int64
    assert list(zip(tensor_of.tolist(), within.tolist(), strict=True)) == [
        (i, k) for i, n in enumerate(counts) for k in range(n)
    ]


@triton.jit
def _entry_kernel(table, chunks, out, COLUMNS: tl.constexpr):
    tl.store(out + 2 * tl.program_id(0), tl.load(step.table_entry(table, chunks, COLUMNS)))
    tl.store(out + 2 * tl.program_id(0) + 1, step.chunk_start(chunks, 64))


@pytest.mark.parametrize("moments", [0, 1, 3])
def test_a_kernel_finds_the_row_of_its_tensor(moments: int, device: str) -> None:
    width = tables.width(moments)
    table = torch.arange(4 * width, device=device).view(4, width)
    chunks = torch.stack(tables.chunks([1, 2, 0, 2]), dim=1).to(torch.int32).to(device)
    assert chunks.shape[1] == constants.CHUNK_ENTRY.value
    out = torch.zeros(len(chunks), 2, dtype=torch.int64, device=device)
    _entry_kernel[(len(chunks),)](table, chunks, out, width)
    rows = [0, 1, 1, 3, 3]
    assert out[:, 0].tolist() == [row * width for row in rows]
    assert out[:, 1].tolist() == [0, 0, 64, 0, 64]


def rows_of(optimizer: AdamWStoSign, params: list[Tensor]) -> dict[int, list[int]]:
    """id of a parameter: its row of the table."""
    (engine,) = optimizer.backend_for(params[0].device)._engines.values()  # type: ignore[attr-defined]
    return {
        id(p): row
        for bucket in engine.buckets
        for p, row in zip(bucket.members, bucket.table.tolist(), strict=True)
    }


@pytest.mark.parametrize("backend", ["triton", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_engines_write_what_the_columns_say(backend: str, dtype: torch.dtype, device: str) -> None:
    if backend == "cpu":
        pytest.importorskip("llvmlite")
    where = device if backend == "triton" else "cpu"
    shapes = [(4, 32), (70,), (3, 64)]
    params = [torch.ones(s, dtype=dtype, device=where, requires_grad=True) for s in shapes]
    optimizer = AdamWStoSign(params, backend=backend)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    found = rows_of(optimizer, params)
    for i, (p, offset, length) in enumerate(zip(params, (0, 128, 224), (32, 70, 64), strict=True)):
        row, entry = found[id(p)], optimizer.state[p]
        assert len(row) == tables.width(2)
        assert row[Column.OFFSET] == int(entry["offset"]) == offset
        # On a GPU a parameter has a clock of its own; on the CPU equal steps share their scalars
        assert row[Column.CLOCK] == (i if backend == "triton" else 0)
        assert row[Column.NUMEL] == p.numel()
        assert row[Column.ROW_LENGTH] == row[Column.PITCH] == length
        assert row[Column.PARAM] == p.data_ptr() and row[Column.GRAD] == p.grad.data_ptr()
        names = tables.state_names(PROGRAM)
        pointers = [entry[name].data_ptr() for name in names]
        assert row[Column.STATE : Column.STATE + 4] == pointers
        if backend == "triton":
            used = [row[Column.PARAM], row[Column.GRAD], *pointers]
            assert row[Column.ALIGNED] == all(x % 16 == 0 for x in used)
