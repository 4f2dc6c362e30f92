"""The two limits, by hand."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from signconv.bench import limits
from signconv.errors import BenchError
from signconv.verification.instructions import parse

#: LDC, a 16-byte load, FADD, FSETP, IMAD, two LOP3, a 16-byte store, EXIT.
SASS = "\n".join(
    f"        /*{16 * i:04x}*/   {line} ;   /* 0x0 */"
    for i, line in enumerate(
        (
            "LDC R1, c[0x0][0x28]",
            "LDG.E.128 R4, desc[UR4][R2.64]",
            "FADD R4, R4, R5",
            "FSETP.GT.AND P0, PT, R4, RZ, PT",
            "IMAD R5, R4, R4, R5",
            "LOP3.LUT R5, R4, R5, RZ, 0xc0, !PT",
            "LOP3.LUT R6, R4, R5, RZ, 0x3c, !PT",
            "STG.E.128 desc[UR4][R2.64], R4",
            "EXIT",
        )
    )
)


def test_instructions_are_counted_by_pipe() -> None:
    assert limits.count_path(parse(SASS)) == {"instructions": 9, "integer_pipe": 3}


def test_limits_by_hand() -> None:
    """132 SMs at 1,000 MHz issue 5.28e11 warp instructions a second, half of that integer ones."""
    rates = {"sms": 132, "sm_mhz": 1000}
    counts = {"instructions": 528, "integer_pipe": 264}
    found = limits.limits(4e9, 4000.0, 1e6, counts, rates)
    assert found == {
        "bytes_ms": pytest.approx(1.0),
        "issue_ms": pytest.approx(1.0),
        "integer_ms": pytest.approx(1.0),
    }


@pytest.mark.parametrize(
    ("warps", "counts", "rates"),
    [
        (1e6, None, {"sms": 132, "sm_mhz": 1000}),
        (1e6, {"instructions": 1, "integer_pipe": 1}, {"sms": 132, "sm_mhz": None}),
        (0.0, {"instructions": 1, "integer_pipe": 1}, {"sms": 132, "sm_mhz": 1000}),
        (1e6, {"instructions": 1, "integer_pipe": 1}, {}),
    ],
)
def test_what_is_not_known_is_no_limit(warps: float, counts: dict, rates: dict) -> None:
    found = limits.limits(4e9, 4000.0, warps, counts, rates)
    assert found == {"bytes_ms": pytest.approx(1.0), "issue_ms": None, "integer_ms": None}


def test_machine_code_is_what_was_compiled_last() -> None:
    old, new = SimpleNamespace(asm={"cubin": b"old"}), SimpleNamespace(asm={"cubin": b"new"})
    cache: dict = {"a": old}
    kernel = SimpleNamespace(device_caches={0: (cache, None)})
    before = limits.compiled_keys(kernel)
    with pytest.raises(BenchError, match="no machine code"):
        limits.compiled_cubin(kernel, before)
    cache["b"] = new
    assert limits.compiled_cubin(kernel, before) == b"new"
    assert limits.compiled_keys(SimpleNamespace()) == set()  # a kernel of the interpreter


def nvidia_smi(folder: Path, text: str, code: int = 0) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\nprintf '{text}'\nexit {code}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "clock"),
    [
        ("GPU-1111, 300, 1980\\nGPU-abcd, 1755, 1980\\n", 1755),
        ("GPU-other, 1200, 1980\\n", 1200),
        ("GPU-abcd, [N/A], 1980\\n", None),
        ("", None),
    ],
)
def test_clock_is_that_of_this_gpu_under_load(
    text: str, clock: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(multi_processor_count=132, uuid="abcd")
    monkeypatch.setattr(limits.torch.cuda, "get_device_properties", lambda i: properties)
    monkeypatch.setattr(limits.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    nvidia_smi(tmp_path, text)
    calls: list[int] = []
    found = limits.machine_rates(lambda: calls.append(0))
    assert found["sms"] == 132 and found["sm_mhz"] == clock
    assert calls, "the clock was read while nothing ran"


def test_no_nvidia_smi_is_no_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(multi_processor_count=132, uuid="abcd")
    monkeypatch.setattr(limits.torch.cuda, "get_device_properties", lambda i: properties)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert limits.machine_rates() == {"sms": 132, "sm_mhz": None, "sm_mhz_max": None}
