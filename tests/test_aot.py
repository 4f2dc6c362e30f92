"""Every generated kernel compiles ahead of time for GPUs that this machine does not have.

One process without TRITON_INTERPRET compiles everything and prints JSON; Triton caches what it
compiled, so that only the first run of a version takes its two minutes.
"""

import json
import re
from pathlib import Path

import pytest

from signconv.catalogue import GENERATED
from signconv.pipeline import build, write
from signconv.runtime.compat import HAS_TRITON
from signconv.verify.aot import TARGETS
from tests.support import ROOT, python, spec_file
from tests.test_generated import label, path_of

# One worker for all, so that the kernels are compiled once (with `pytest --dist loadgroup`).
pytestmark = [
    pytest.mark.xdist_group("aot"),
    pytest.mark.skipif(not HAS_TRITON, reason="needs Triton"),
]

COMPILE = r"""
import json, re, subprocess, sys, tempfile
from pathlib import Path
import torch, triton
from signconv.verify import aot
from signconv.verify.bits import load_class

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

def local_bytes(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    usage = re.findall(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    return [[int(x) for x in kernel] for kernel in usage]

def row(compiled):
    asm = compiled.asm
    made = {
        "binary": len(asm.get("cubin") or asm.get("hsaco") or b""),
        "spills": compiled.spills,
        "loads": compiled.wide_loads,
        "stores": compiled.wide_stores,
        "fused": len(re.findall(r"\bfma\.rn\.f32\b", asm.get("ptx", ""))),
        "approximate": re.findall(r"\b(?:div|sqrt|rcp)\.(?:approx|full)[.\w]*", asm.get("ptx", "")),
    }
    if compiled.target == "sm_90":
        made["usage"] = local_bytes(asm["cubin"])
    return made

found = {}
for path in sys.argv[1:]:
    cls = load_class(Path(path))
    found[path] = {}
    for target in aot.TARGETS:
        tries = {"scalars": lambda: aot.compile_scalars(cls, target)}
        for dtype in (torch.bfloat16, torch.float32):
            name = str(dtype).removeprefix("torch.")
            tries[name] = lambda dtype=dtype: aot.compile_step(cls, target, dtype)
        for name, make in tries.items():
            try:
                found[path][f"{target} {name}"] = row(make())
            except Exception as error:
                found[path][f"{target} {name}"] = {"error": f"{type(error).__name__}: {error}"[:500]}
print(json.dumps(found))
"""

#: A spec with everything that is written as a literal number.
LITERALS = """\
m = ema(grad, 0.9, init="first")
v = ema(grad**2, 0.99)
q = state(init=1)
q.next = where(t % 3 == 0, 0, 0.5 * q.prev + 0.1 * abs(grad))
warm = 1 - 0.5**t
numerator = m * warm + 0.001 * clip(grad, -1, 1)
denominator = sqrt(v.corrected) + q + 1e-8
decay = independent(0.01)
"""
LITERAL = "literals"


def compile_all(paths: list[Path]) -> dict[str, dict]:
    done = python("-c", COMPILE, *map(str, paths), TRITON_INTERPRET=None, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Label of a generated file -> kernel -> what can be read off its machine code."""
    files = {label(e): path_of(e) for e in GENERATED}
    folder = tmp_path_factory.mktemp("literals")
    made = build(spec_file(folder, LITERALS).spec)
    files[LITERAL], _ = write(made.module, folder)
    found = compile_all(list(files.values()))
    return {name: found[str(path)] for name, path in files.items()}


LABELS = [label(e) for e in GENERATED]
every = pytest.mark.parametrize("name", LABELS)
NVIDIA = [t for t in TARGETS if t.startswith("sm_")]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*LABELS, LITERAL])
def test_step_and_scalar_kernels_compile(name: str, target: str, compiled: dict) -> None:
    for kernel in ("scalars", "bfloat16", "float32"):
        made = compiled[name][f"{target} {kernel}"]
        assert "error" not in made, f"{kernel}: {made['error']}"
        assert made["binary"] > 1000


@pytest.mark.parametrize("target", NVIDIA)
@every
def test_bf16_parameters_move_16_bytes_at_a_time(name: str, target: str, compiled: dict) -> None:
    made = compiled[name][f"{target} bfloat16"]
    assert made["loads"] >= 1 and made["stores"] >= 1, made


@pytest.mark.parametrize("kernel", ["bfloat16", "float32", "scalars"])
@every
def test_no_spills_on_sm_90(name: str, kernel: str, compiled: dict) -> None:
    """By the compiler's own count and by the machine code's record of local memory."""
    made = compiled[name][f"sm_90 {kernel}"]
    assert made["spills"] == 0
    assert made["usage"], "cuobjdump printed no kernel"
    for registers, stack, local in made["usage"]:
        assert 0 < registers < 255
        assert (stack, local) == (0, 0)


@pytest.mark.parametrize("kernel", ["bfloat16", "float32"])
@every
def test_ptx_has_no_contraction_and_no_approximation(
    name: str, kernel: str, compiled: dict
) -> None:
    """IEEE binary32 in source order: one fused multiply-add would part kernel and reference."""
    for target in NVIDIA:
        made = compiled[name][f"{target} {kernel}"]
        assert made["fused"] == 0
        assert made["approximate"] == []


def test_compiling_where_kernels_are_interpreted_is_refused() -> None:
    probe = (
        "from pathlib import Path\nfrom signconv.verify import aot, bits\n"
        f"aot.compile_step(bits.load_class(Path({str(ROOT / 'generated' / 'adamw.py')!r})), 'sm_90')"
    )
    done = python("-c", probe, TRITON_INTERPRET="1")
    assert done.returncode != 0
    assert re.search("VerifyError: .*unset TRITON_INTERPRET", done.stderr)


def test_unknown_target_gives_the_valid_ones() -> None:
    probe = (
        "from pathlib import Path\nfrom signconv.verify import aot, bits\n"
        f"aot.compile_step(bits.load_class(Path({str(ROOT / 'generated' / 'adamw.py')!r})), 'sm_9')"
    )
    done = python("-c", probe)
    assert re.search("VerifyError: unknown target 'sm_9'; valid: .*sm_90", done.stderr)
