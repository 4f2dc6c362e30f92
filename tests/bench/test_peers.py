"""Other libraries: none of them can fail a run, and none can hold it up."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from signconv.bench import peers
from signconv.bench.peers import PEERS, Peer, _attempts, _children_rows, compared, run_peer
from signconv.bench.subjects import Subject, build, parse


def rows_of(peer: Peer, keys: list[str], device: str = "cpu", limit: float = 60) -> list[dict]:
    return list(run_peer(peer, keys, device, "bf16", True, limit))


def test_torch_is_measured_in_a_process_of_its_own() -> None:
    first, second = rows_of(PEERS["torch AdamW fused"], ["A", "D"])
    assert [first["workload"], second["workload"]] == ["A", "D"]
    assert first["device_ms"] > 0 and first["state_bytes"] == 4.0
    assert len(first["samples"]["step_ms"]) == 3


def test_a_missing_library_is_a_row_per_workload() -> None:
    peer = Peer("X", "no-such-distribution", lambda params: None, ("adamw",))
    assert rows_of(peer, ["A", "D"]) == [
        {"workload": k, "error": "not installed: pip install no-such-distribution"} for k in "AD"
    ]


def test_a_library_without_cpu_code_says_so() -> None:
    peer = Peer("X", "torch", lambda params: None, ("adamw",), gpu_only=True)
    assert rows_of(peer, ["A"]) == [{"workload": "A", "error": "needs a GPU"}]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("params", ["bf16", "fp32"])
def test_every_peer_is_compared_with_a_build_of_no_more_state(name: str, params: str) -> None:
    """Or, in the report, marked: 8-bit AdamW with scales of 256 keeps 2.03 bytes, ours 2.06."""
    peer = PEERS[name]
    theirs = {"torch": 8 if params == "fp32" else 4, "lion-pytorch": 4 if params == "fp32" else 2,
              "flashoptim": 2.125, "heavyball": 4}.get(peer.package, 2.07)  # fmt: skip
    for spec in compared(peer, params):
        built = build(parse(spec, Subject("", params=params)))
        assert built.state_bytes <= theirs
        assert built.subject.spec == ("lion" if "Lion" in name else "adamw")
        assert built.subject.params == params


def test_torch_adapters_make_what_they_say() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    assert PEERS["torch AdamW fused"].make([p]).defaults["fused"]
    assert PEERS["torch AdamW foreach"].make([p]).defaults["foreach"]


# ---------------------------------------------------------------- processes that misbehave


def child(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    """A compiler runs in further processes: they must not go on beside the next measurement."""
    code = (
        "import subprocess, sys, time\n"
        "print('noise')\n"
        """print('{"workload": "A"}', flush=True)\n"""
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(other.pid))\n"
        "time.sleep(300)\n"
    )
    begin = time.monotonic()
    found = list(_children_rows(child(code), 3.0))
    assert found == [{"workload": "A"}, {"error": "no result within 3 s"}]
    assert time.monotonic() - begin < 60
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the process that the child had started still runs")


def test_a_process_that_dies_says_what_it_said_last() -> None:
    (row,) = _children_rows(child("import sys; sys.exit('no kernel for /opt/x/lib.so')"), 60.0)
    assert row == {"error": "ended with code 1: no kernel for …/lib.so"}


def test_a_process_that_wants_a_fresh_one_is_no_error() -> None:
    code = f"import sys; print('{{}}'); sys.exit({peers.RESTART})"
    assert list(_children_rows(child(code), 60.0)) == [{}]


def test_each_workload_gets_its_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A: fails and asks for a fresh process. B: never ends. C: is measured. D: dies."""
    started = []

    def process(command: list[str], limit: float) -> Any:
        left = command[4].split(",")
        started.append("".join(left))
        if left[0] == "A":
            yield {"workload": "A", "error": "broken"}
        elif left[0] == "B":
            yield {"error": "no result within 1 s"}
        elif left[0] == "C":
            yield {"workload": "C", "device_ms": 1.0}
            yield {"error": "ended with code 9"}

    monkeypatch.setattr(peers, "_children_rows", process)
    rows = list(_attempts("X", list("ABCD"), [], 1.0))
    assert started == ["ABCD", "BCD", "CD"]
    assert rows == [
        {"workload": "A", "error": "broken"},
        {"workload": "B", "error": "no result within 1 s"},
        {"workload": "C", "device_ms": 1.0},
        {"workload": "D", "error": "ended with code 9"},
    ]


def test_kernels_are_listed_after_all_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU: by other processes, for the workloads that could be timed."""
    begun = []

    def attempts(name: str, keys: list[str], options: list[str], limit: float) -> Any:
        begun.append((keys, "--kernels" in options))
        if "--kernels" in options:
            yield {"workload": "A", "kernels": [], "launches": 7.0, "busy_ms": 0.5}
            yield {"workload": "C", "error": "no result within 1 s"}
        else:
            yield {"workload": "A", "device_ms": 2.0, "clock": "steps one after the other"}
            yield {"workload": "B", "error": "broken"}
            yield {"workload": "C", "device_ms": 3.0, "clock": "steps one after the other"}

    monkeypatch.setattr(peers, "_attempts", attempts)
    a, b, c = rows_of(PEERS["torch AdamW fused"], list("ABC"), "cuda")
    assert begun == [(list("ABC"), False), (list("AC"), True)]
    assert (a["device_ms"], a["launches"]) == (0.5, 7.0)
    assert b == {"workload": "B", "error": "broken"}
    assert c["device_ms"] == 3.0 and c["profiler_error"] == "no result within 1 s"


def test_a_peer_that_fails_prints_a_row_and_asks_for_a_fresh_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(params: list) -> None:
        raise ImportError("libcuda.so.1 is missing")

    monkeypatch.setitem(PEERS, "X", Peer("X", "torch", fail, ("adamw",)))
    monkeypatch.setattr(sys, "argv", ["peers", "X", "A,D", "--device", "cpu", "--quick"])
    assert peers.main() == peers.RESTART
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"workload": "A", "error": "ImportError: libcuda.so.1 is missing"}
