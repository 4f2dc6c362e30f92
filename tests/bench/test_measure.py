"""Rows: measured on the CPU in earnest, and what a GPU adds by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from signconv.bench import measure, run, timing
from signconv.bench.measure import Ours, add_kernels, one_line, shortened, state_bytes
from signconv.bench.subjects import Subject, parse
from signconv.bench.workloads import choose
from signconv.errors import BenchError
from signconv.runtime.kernel import passes, step, walk


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small run on the CPU."""
    subjects = [parse(x, Subject("")) for x in ("sgd@bf16", "signsgd@fp32@params=fp32")]
    plan = run.Plan(
        run.build_all(subjects), tuple(choose("A,D", quick=True)), "cpu", quick=True, command="x"
    )
    path = tmp_path_factory.mktemp("bench") / "deep" / "record.json"
    seen: list[tuple[int, bool]] = []

    def report(_: dict[str, Any], row: dict[str, Any]) -> None:
        kept = run.read(path)
        seen.append((len(kept["rows"]), kept["complete"]))
        assert kept["rows"][-1]["label"] == row["label"]

    made = run.run(plan, report, path)
    assert seen == [(1, False), (2, False), (3, False), (4, False)]
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]
    assert run.read(path) == run.rounded(made)
    return made


def test_one_row_per_optimizer_and_workload(record: dict[str, Any]) -> None:
    assert record["complete"]
    found = [(r["kind"], r["label"], r["workload"], r["params"]) for r in record["rows"]]
    assert found == [
        ("ours", "sgd@bf16", "A", "bf16"),
        ("ours", "signsgd@fp32@params=fp32", "A", "fp32"),
        ("ours", "sgd@bf16", "D", "bf16"),
        ("ours", "signsgd@fp32@params=fp32", "D", "fp32"),
    ]
    assert all("error" not in r for r in record["rows"])


def test_figures_follow_from_the_samples(record: dict[str, Any]) -> None:
    by_key = {w["key"]: w for w in record["workloads"]}
    for row in record["rows"]:
        w = by_key[row["workload"]]
        samples = row["samples"]["step_ms"]
        assert samples["count"] == timing.QUICK.least and samples["min"] > 0
        assert samples["min"] <= samples["q25"] <= samples["median"] <= samples["q75"]
        assert samples["q75"] <= samples["max"]
        assert row["device_ms"] == row["step_ms"] == samples["median"]
        moved = {"sgd@bf16": 2 + 2 + 2 + 4, "signsgd@fp32@params=fp32": 12}[row["label"]]
        assert row["moved_bytes"] == moved
        assert row["gbps"] == pytest.approx(moved * w["elements"] / row["device_ms"] / 1e6)
        assert row["of_copy"] == pytest.approx(row["gbps"] / w["copy"]["gbps"])
        lists = w["list_copy"][row["params"]]
        assert row["of_list_copy"] == pytest.approx(row["gbps"] / lists["gbps"])
        assert row["limits"]["bytes_ms"] == pytest.approx(row["of_copy"] * row["device_ms"])
        assert row["counts"] is None and row["limits"]["issue_ms"] is None
        assert row["state_bytes"] == {"bf16": 2, "fp32": 0}[row["params"]]


def test_the_record_says_where_and_how(record: dict[str, Any]) -> None:
    assert record["machine"]["name"] and record["machine"]["threads"] >= 1
    assert record["machine"]["versions"]["torch"] == torch.__version__
    assert record["settings"] == {
        "device": "cpu", "quick": True, "peers": [], "peer_limit_s": 120.0,
    }  # fmt: skip


def test_a_step_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    built = run.build_all([Subject("sgd"), Subject("signsgd")])

    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate everything")

    monkeypatch.setattr(built[0].optimizer, "step", fail)
    plan = run.Plan(built, tuple(choose("A", quick=True)), "cpu", quick=True)
    first, second = run.run(plan, lambda record, row: None)["rows"]
    assert first["error"] == "out of memory on the device" and "device_ms" not in first
    assert second["device_ms"] > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is not JSON"), ("[]", "is no record"), ('{"schema": 0}', "is no record")],
)
def test_files_that_are_no_record(text: str, words: str, tmp_path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BenchError, match=words):
        run.read(tmp_path / "x.json")
    with pytest.raises(BenchError, match="cannot read"):
        run.read(tmp_path / "none.json")


# ---------------------------------------------------------------- what a GPU adds


def kernel(name: str, ms: float, warps: float, launches: float = 1.0) -> dict[str, Any]:
    return {"name": name, "launches": launches, "ms": ms, "warps": warps}


def test_kernels_give_the_device_time_of_what_is_not_captured() -> None:
    found = {"kernels": [], "launches": 3.0, "copies": 0.0, "busy_ms": 0.25}
    peer = {"clock": measure.WHOLE, "device_ms": 5.0, "step_ms": 5.0}
    add_kernels(peer, found)
    assert (peer["device_ms"], peer["step_ms"], peer["launches"]) == (0.25, 5.0, 3.0)
    ours = {"clock": "graph replay", "device_ms": 0.3, "step_ms": 5.0}
    add_kernels(ours, found)
    assert ours["device_ms"] == 0.3
    broken = {"clock": measure.WHOLE, "device_ms": 5.0}
    add_kernels(broken, {"profiler_error": "none"})
    assert broken["device_ms"] == 5.0 and broken["profiler_error"] == "none"


def test_the_kernels_of_all_elements_are_named_as_the_library_names_them() -> None:
    """By these names the driver's record of a step is read."""
    pytest.importorskip("triton")
    kernels = (step.step_kernel, walk.walk_kernel, passes.reduce_kernel, walk.column_kernel)
    assert tuple(k.fn.__name__ for k in kernels) == measure.ELEMENTWISE


def test_limits_of_a_row_are_those_of_its_step_kernel() -> None:
    """2e6 bytes at 1,000 GB/s: 2 µs; 100 warps of 40 instructions on one SM at 1,000 MHz: 1 µs."""
    ours = Ours("cuda", timing.QUICK, {"sms": 1, "sm_mhz": 1000})
    row = {
        "moved_bytes": 2.0, "device_ms": 0.004,
        "counts": {"instructions": 40, "integer_pipe": 30},
        "kernels": [kernel("step_kernel", 0.003, 100), kernel("reduce_kernel", 0.0005, 700),
                    kernel("scalar_kernel", 0.0001, 1)],
    }  # fmt: skip
    ours.derive(row, 1_000_000, 1000.0, 800.0)
    assert row["kernel_ms"] == pytest.approx(0.0035)
    assert row["of_copy"] == pytest.approx(0.5) and row["of_list_copy"] == pytest.approx(0.625)
    assert row["limits"] == {
        "bytes_ms": pytest.approx(0.002),
        "issue_ms": pytest.approx(0.001),
        "integer_ms": pytest.approx(0.0015),
    }


def test_launches_and_copies_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        timing.Kernel("scalar_kernel", 1.0, 0.01, 1),
        timing.Kernel("step_kernel", 2.0, 0.5, 100),
        timing.Kernel("Memcpy HtoD (Pinned -> Device)", 0.5, 0.02, 0),
    ]
    steps: list[int] = []
    optimizer = SimpleNamespace(step=lambda: steps.append(0))
    monkeypatch.setattr(timing, "kernels", lambda step: found)
    got = measure.kernels_of(optimizer)
    assert steps, "tables are uploaded at the first step, which is no usual one"
    assert (got["launches"], got["copies"]) == (3.0, 0.5)
    assert got["busy_ms"] == pytest.approx(0.53)


def test_a_profiler_that_fails_is_said() -> None:
    def fail() -> None:
        raise RuntimeError("CUPTI: permission denied")

    assert "permission denied" in measure.kernels_of(SimpleNamespace(step=fail))["profiler_error"]


# ---------------------------------------------------------------- state of other optimizers


def test_state_of_torch_is_counted_without_its_step_counts() -> None:
    p = torch.nn.Parameter(torch.ones(10, 10))
    p.grad = torch.ones_like(p)
    optimizer = torch.optim.AdamW([p])
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 4 * 100


class Codes(torch.Tensor):
    """As torchao keeps its state: a tensor subclass around codes and scales."""

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scales: torch.Tensor) -> "Codes":
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        self.codes, self.scales = codes, scales

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        raise NotImplementedError(function)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scales"], None


def test_state_inside_other_objects_is_counted_once() -> None:
    codes, scales = torch.ones(256, dtype=torch.uint8), torch.ones(2)
    entry = {
        "m": Codes(codes, scales),
        "v": SimpleNamespace(data=torch.ones(64, dtype=torch.int8), parts=[codes]),
        "step": torch.tensor(1),
    }
    assert state_bytes(SimpleNamespace(state={0: entry})) == 256 + 8 + 64


def test_messages_are_one_line_without_folders() -> None:
    error = RuntimeError("\n  cannot open /usr/lib/x/y.so:\n no such file")
    assert one_line(error) == "RuntimeError: cannot open …/y.so:"
    assert shortened("a/b of 3/4 in ./c/d") == "a/b of 3/4 in ./c/d"
    assert len(shortened("x" * 500)) == 160
