"""Other libraries: none of them can fail a run, and none can hold it up."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from signconv.bench import peers, run
from signconv.bench.peers import PEERS, Peer, _child_lines, compared, late, measured, run_peer
from signconv.bench.subjects import Subject, build, parse
from signconv.bench.workloads import choose


def rows_of(peer: Peer, keys: str, device: str = "cpu", limit: float = 60) -> list[dict]:
    return list(run_peer(peer, choose(keys), device, "bf16", True, limit))


def test_torch_is_measured_in_a_process_of_its_own() -> None:
    first, second = rows_of(PEERS["torch AdamW fused"], "A,D")
    assert [first["workload"], second["workload"]] == ["A", "D"]
    assert first["device_ms"] > 0 and first["state_bytes"] == 4.0 and first["first_step_s"] > 0
    assert first["samples"]["step_ms"]["count"] == 3


def test_a_missing_library_is_a_row_per_workload() -> None:
    peer = Peer("X", "no-such-distribution", lambda params: None, ("adamw",))
    assert rows_of(peer, "A,D") == [
        {"workload": k, "error": "not installed: pip install no-such-distribution"} for k in "AD"
    ]


def test_a_library_without_cpu_code_says_so() -> None:
    peer = Peer("X", "torch", lambda params: None, ("adamw",), gpu_only=True)
    assert rows_of(peer, "A") == [{"workload": "A", "error": "needs a GPU"}]


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("params", ["bf16", "fp32"])
def test_every_peer_is_compared_with_a_build_of_no_more_state(name: str, params: str) -> None:
    """Or, in the report, marked: 8-bit AdamW with scales of 256 keeps 2.03 bytes, ours 2.06, and
    the two of about one byte less than any of ours."""
    peer = PEERS[name]
    plain = 8 if params == "fp32" else 4
    theirs = {"torch": plain, "transformer-engine": plain, "torch-optimi": plain, "heavyball": 4,
              "lion-pytorch": plain / 2, "flashoptim": 2.125}.get(peer.package, 2.07)  # fmt: skip
    theirs = plain / 2 if name == "torch Muon" else theirs
    for spec in compared(peer, params):
        built = build(parse(spec, Subject("", params=params)))
        assert built.state_bytes <= theirs
        kind = next((k for k in ("Lion", "Muon") if k in name), "adamw")
        assert built.subject.spec == kind.lower()
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
    found = list(_child_lines(child(code), 3.0))
    assert found == [{"workload": "A"}, {"error": late(3)}]
    assert time.monotonic() - begin < 60
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the process that the child had started still runs")


def test_a_process_that_dies_says_what_it_said_last() -> None:
    (row,) = _child_lines(child("import sys; sys.exit('no kernel for /opt/x/lib.so')"), 60.0)
    assert row == {"error": "ended with code 1: no kernel for …/lib.so"}


#: What a child prints on a GPU.
TIMED = {"device_ms": 2.0, "clock": "steps one after the other"}
LISTED = {"kernels": [], "launches": 7.0, "busy_ms": 0.5}


def test_each_workload_gets_its_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails on one is measured on the next, and what was timed is kept whatever follows."""
    lines: dict[str, list[dict]] = {
        "A": [{"error": "broken"}],
        "B": [{"first_step_s": 9.0}, TIMED, LISTED],
        "C": [{"first_step_s": 9.0}, TIMED, {"error": "ended with code 9"}],
        "D": [{"first_step_s": 9.0}, {"error": late(60)}],
    }
    monkeypatch.setattr(peers, "_child_lines", lambda command, limit: lines[command[4]])
    a, b, c, d = rows_of(PEERS["torch AdamW fused"], "A,B,C,D", "cuda")
    assert a == {"workload": "A", "error": "broken"}
    assert (b["device_ms"], b["launches"], b["first_step_s"]) == (0.5, 7.0, 9.0)
    assert c["device_ms"] == 2.0 and c["profiler_error"] == "ended with code 9" and "error" not in c
    assert d["error"] == "no result within 60 s"


def test_lists_too_long_for_a_compiler_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """B has 145 tensors, C 148, D 2,000: what B's compiler does not end, theirs would not."""
    begun = []

    def lines(command: list[str], limit: float) -> list[dict]:
        begun.append(command[4])
        return [{"first_step_s": 9.0}, TIMED] if command[4] == "A" else [{"error": late(limit)}]

    monkeypatch.setattr(peers, "_child_lines", lines)
    a, *others = run_peer(PEERS["torch AdamW fused"], choose("A,B,C,D"), "cuda", "bf16", False, 60)
    assert begun == ["A", "B"] and "error" not in a
    assert [x["error"] for x in others] == [
        "no result within 60 s",
        "not tried: no result within 60 s on 145 tensors",
        "not tried: no result within 60 s on 145 tensors",
    ]


def test_a_peer_that_fails_prints_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(params: list) -> None:
        raise ImportError("libcuda.so.1 is missing")

    monkeypatch.setitem(PEERS, "X", Peer("X", "torch", fail, ("adamw",)))
    monkeypatch.setattr(sys, "argv", ["peers", "X", "A", "--device", "cpu", "--quick"])
    assert peers.main() == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"error": "ImportError: libcuda.so.1 is missing"}


def test_a_step_that_takes_the_gradients_is_not_timed() -> None:
    """The next step would have nothing to do, and be fast at it."""

    def make(params: list[torch.Tensor]) -> Any:
        optimizer = torch.optim.SGD(params)
        optimizer.register_step_post_hook(lambda *_: optimizer.zero_grad())
        return optimizer

    peer = Peer("X", "torch", make, ("sgd",))
    first, said = measured(peer, *choose("A", quick=True), "fp32", "cpu", True)
    assert first["first_step_s"] > 0 and "takes the gradients away" in said["error"]


@pytest.mark.long
def test_a_run_cut_off_keeps_what_peers_had(tmp_path: Path) -> None:
    """Each row of a peer is on disk before its next workload begins."""
    path = tmp_path / "r.json"
    kept = []

    def report(record: dict[str, Any], row: dict[str, Any]) -> None:
        kept.append([(r["label"], r["workload"]) for r in run.read(path)["rows"]])
        if len(kept) == 3:
            raise KeyboardInterrupt

    name = "torch AdamW fused"
    built = run.build_all([Subject("sgd", state="bf16")])
    plan = run.Plan(built, tuple(choose("A,D", quick=True)), "cpu", quick=True, peers=(name,))
    with pytest.raises(KeyboardInterrupt):
        run.run(plan, report, path)
    assert kept[-1] == [("sgd@bf16", "A"), ("sgd@bf16", "D"), (name, "A")]
    assert not run.read(path)["complete"]
