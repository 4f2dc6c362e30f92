"""Generated kernels compile ahead of time for GPUs that this machine does not have.

One process without TRITON_INTERPRET compiles everything and prints JSON.  A compilation takes one
to three seconds, so one of every kind is compiled for sm_90, some for gfx942, and one for every
target; SIGNCONV_AOT=all compiles all files for all (``make test-long``).
"""

import json
import os
import re

import pytest

from signconv.pipeline import build, write
from signconv.pipeline.catalogue import GENERATED, Entry
from signconv.runtime.compat import HAS_TRITON
from signconv.verification import aot
from signconv.verification.aot import TARGETS
from tests.render.test_generated import ISSUE, label
from tests.support import ROOT, python, spec_file
from tests.support.entries import CORE, path_of

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="needs Triton")

COMPILE = r"""
import json, re, subprocess, sys, tempfile
from pathlib import Path
import torch, triton
from signconv.runtime.kernel.launch import launch_shape
from signconv.verification import aot
from signconv.verification.bits import load_class

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

def usage(cubin):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        words = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    kernels = re.findall(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    return [[int(x) for x in kernel] for kernel in kernels]

def read(made, target):
    ptx = aot.without_assembly(made.asm.get("ptx", ""))
    return {
        "binary": len(made.asm.get("cubin") or made.asm.get("hsaco") or b""),
        "spills": made.spills,
        "loads": made.wide_loads,
        "stores": made.wide_stores,
        "fused": made.contractions,
        "approximate": re.findall(r"\b(?:div|sqrt|rcp)\.(?:approx|full)[.\w]*", ptx),
        "usage": usage(made.asm["cubin"]) if target == "sm_90" else None,
    }

found = {}
for path, wanted in json.loads(sys.argv[1]).items():
    cls = load_class(Path(path))
    found[path] = {}
    for key in wanted:
        target, kernel = key.split()
        try:
            if kernel == "scalars":
                made = aot.compile_scalars(cls, target)
            elif kernel == "finder":
                made = aot.compile_finder(cls, target)
            elif kernel == "squares":
                made = aot.compile_squares(cls, target)
            elif kernel == "stages":
                every = aot.compile_stages(cls, target)
                every += aot.compile_stages(cls, target, (3, 50))
                all = [read(x, target) for x in every]
                found[path][key] = {
                    "binary": min(x["binary"] for x in all),
                    "spills": max(x["spills"] for x in all),
                    "fused": [y for x in all for y in x["fused"]],
                    "approximate": [y for x in all for y in x["approximate"]],
                    "usage": [y for x in all for y in x["usage"] or ()],
                }
                continue
            elif kernel == "scaled":
                made = aot.compile_step(cls, target, scaled=True)
            else:
                made = aot.compile_step(cls, target, getattr(torch, kernel))
            found[path][key] = read(made, target)
            if kernel not in ("scalars", "finder", "squares"):
                dtype = getattr(torch, kernel, torch.bfloat16)
                cap = launch_shape(cls.program, dtype).registers
                found[path][key]["cap"] = cap
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            found[path][key] = {"error": words[:100] + " ... " + words[-300:]}
print(json.dumps(found))
"""

#: A spec with everything that can be written as a literal number.
LITERALS = """\
m = ema(grad, 0.9, init="first")
v = ema(grad**2, 0.99)
q = state(init=1)
q.next = 0.5 * q.prev + 0.1 * abs(grad)
warm = 1 - 0.5**t
numerator = m * warm + 0.001 * clip(grad, -1, 1)
denominator = sqrt(v.corrected) + q + 1e-8
decay = independent(0.01)
"""
LITERAL = "literals"
KERNELS = ("bfloat16", "float32", "scaled", "scalars", "finder", "squares")
EVERYTHING = [f"{target} {kernel}" for target in TARGETS for kernel in KERNELS]
SOME = ["sm_90 bfloat16"]
EACH_TARGET = [x for x in EVERYTHING if "bfloat16" in x or x.startswith(("sm_90", "gfx942"))]
MORE = [*SOME, "gfx942 bfloat16", "sm_90 finder", "sm_90 scalars"]
#: Optimizers with stages before the step: those that sum, and what is made of the sums.
STAGED = (*map(Entry, (
    "adafactor", "adalomo", "adam_mini", "adamuon", "came", "cautious_adamw", "lamb", "mars",
    "muon", "muon_rms", "normuon", "scion", "sm3", "stableadamw",
)), Entry("muon", state="fp4"))  # fmt: skip


def plan() -> dict[str, list[str]]:
    """Label of a generated file -> what is compiled of it."""
    full = os.environ.get("SIGNCONV_AOT") == "all"
    if full:
        stages = [f"{target} stages" for target in TARGETS]
        made = {label(e): EVERYTHING + stages * (e in STAGED) for e in GENERATED}
        return made | {LITERAL: EVERYTHING}
    made = {label(e): SOME for e in CORE}  # which has every kind
    made |= {label(e): MORE for e in GENERATED if path_of(e).name in ISSUE}
    made |= {label(Entry("adamw", "stosign")): EACH_TARGET, label(Entry("s3")): MORE}
    for e in STAGED:
        if e in CORE:
            made[label(e)] = [*made[label(e)], "sm_90 stages"]
    made[label(Entry("came"))].append("gfx942 stages")
    return made | {LITERAL: ["sm_90 float32", "gfx942 bfloat16"]}


PLAN = plan()
PAIRS = [(name, key) for name, keys in PLAN.items() for key in keys]
STEPS = [
    (name, key)
    for name, key in PAIRS
    if key.split()[1] not in ("scalars", "finder") and "sm_" in key
]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Label -> kernel -> what can be read off its machine code."""
    folder = tmp_path_factory.mktemp("literals")
    paths = {label(e): path_of(e) for e in GENERATED if label(e) in PLAN}
    paths[LITERAL], _ = write(build(spec_file(folder, LITERALS).spec).module, folder)
    request = json.dumps({str(path): PLAN[name] for name, path in paths.items()})
    done = python("-c", COMPILE, request, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: found[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize(("name", "key"), PAIRS)
def test_kernel_compiles(name: str, key: str, compiled: dict) -> None:
    made = compiled[name][key]
    assert "error" not in made, made["error"]
    assert made["binary"] > 1000


def test_stages_are_compiled_where_there_are_any() -> None:
    found = {e for e in GENERATED if "stages=" in path_of(e).read_text("utf-8")}
    assert found == set(STAGED)


@pytest.mark.parametrize(
    ("name", "key"), [(n, k) for n, k in STEPS if "bfloat16" in k or "squares" in k]
)
def test_bf16_tensors_move_16_bytes_at_a_time(name: str, key: str, compiled: dict) -> None:
    made = compiled[name][key]
    assert made["loads"] >= 1 and (made["stores"] >= 1 or "squares" in key), made


@pytest.mark.parametrize(("name", "key"), [(n, k) for n, k in PAIRS if "sm_90" in k])
def test_spills_on_sm_90_only_where_registers_are_capped(
    name: str, key: str, compiled: dict
) -> None:
    """By the compiler's own count and by the machine code's record: stack is what ptxas spilled.

    A cap (launch_shape) was measured to bring more than it costs, a little stack per thread.
    """
    made = compiled[name][key]
    cap = made.get("cap")
    most = 320 if cap else 0
    assert made["spills"] <= most
    assert made["usage"], "cuobjdump printed no kernel"
    for registers, stack, local in made["usage"]:
        assert 0 < registers <= (cap or 254)
        assert stack <= most and local == 0


@pytest.mark.parametrize(("name", "key"), STEPS)
def test_ptx_has_no_contraction_and_no_approximation(name: str, key: str, compiled: dict) -> None:
    """IEEE binary32 in source order: one fused multiply-add would part kernel and reference."""
    made = compiled[name][key]
    assert made["fused"] == []
    assert made["approximate"] == []


@pytest.mark.parametrize(
    ("line", "contracted"),
    [
        ("fma.rn.f32 %f4, %f1, %f2, %f3;", True),
        ("fma.rn.f32 x0, %r198, 0f00000000, %r198;", False),  # ptx.py, x + x*0
        ("fma.rn.f32 x0, %r198, 0f40000000, %r198;", True),
        ("mov.b16 %rs1, 0x3F80; \n\tfma.rn.bf16 \t%rs4, %rs2, %rs1, %rs3;", False),
        ("mov.b16 %rs1, 0x8000;\n\tfma.rn.bf16 %rs4, %rs2, %rs3, %rs1;", False),
        ("mov.b16 %rs1, 0x0000;\n\tfma.rn.bf16 %rs4, %rs2, %rs3, %rs1;", True),  # -0 + 0 is 0
        # a masked load writes 0 first
        ("mov.b32 %r1, 0x0;\n@%p ld.b32 { %r1 }, [%rd1];\nfma.rn.f32 %r4, %r1, %r2, %r3;", True),
        ("fma.rn.f64 %fd4, %fd1, %fd2, %fd3;", True),
        ("mov.b32 %r1, 0x3F803F80;\n\tfma.rn.bf16x2 %r4, %r2, %r1, %r3;", True),  # not known
        ("mul.rn.f32 %f4, %f1, %f2;\n\tadd.rn.f32 %f5, %f4, %f3;", False),
    ],
)
def test_what_counts_as_a_contraction(line: str, contracted: bool) -> None:
    assert bool(aot.contractions("\t" + line)) is contracted


FUSED = r"""
import torch, triton
import signconv
from signconv.verification import aot
real = triton.compile
triton.compile = lambda *a, options, **k: real(
    *a, options={**options, "enable_fp_fusion": True}, **k
)
for options in ({"spec": "adamw", "convert": "soft:p=5"}, {"spec": "s3gd", "math": "bf16"}):
    cls = signconv.compile(**options)
    print(len(aot.compile_step(cls, "sm_80", torch.bfloat16).contractions))
"""


def test_a_contraction_would_be_seen() -> None:
    """With Triton's default, which fuses: in roots that are stored, and in bf16 arithmetic."""
    done = python("-c", FUSED)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(int(x) > 0 for x in done.stdout.split()) and done.stdout.count("\n") == 2


SPILL = r"""
import torch, triton
from pathlib import Path
from signconv.verification import aot, bits
real = triton.compile
triton.compile = lambda *a, options, **k: real(*a, options={**options, "maxnreg": 32}, **k)
cls = bits.load_class(Path("generated/adamw.py"))
print(aot.compile_step(cls, "sm_90", torch.float32).spills)
"""


def test_a_spill_would_be_counted() -> None:
    """With 32 registers ptxas keeps 296 bytes per thread in local memory."""
    done = python("-c", SPILL)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0


def probe(target: str) -> str:
    path = str(ROOT / "generated" / "adamw.py")
    return (
        "from pathlib import Path\nfrom signconv.verification import aot, bits\n"
        f"aot.compile_step(bits.load_class(Path({path!r})), {target!r})"
    )


def test_compiling_where_kernels_are_interpreted_is_refused() -> None:
    done = python("-c", probe("sm_90"), TRITON_INTERPRET="1")
    assert done.returncode != 0
    assert re.search(r"VerifyError: .*unset TRITON_INTERPRET", done.stderr)


def test_unknown_target_gives_the_valid_ones() -> None:
    done = python("-c", probe("sm_9"))
    assert re.search(r"VerifyError: unknown target 'sm_9'; valid: .*sm_90", done.stderr)


SPLIT_MASTERS = r"""
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.runtime.formats import PLAIN, SPLIT, WHOLE
from signconv.runtime.kernel.launch import launch_shape
from signconv.runtime.program import Rows
from signconv.verification import aot

tiles = launch_shape(AdamWStoSign.program, torch.bfloat16).tiles
for target in ("sm_90", "gfx942"):
    plain, split = (
        aot.compile_step(AdamWStoSign, target, torch.bfloat16, Rows.FLAT, m)
        for m in (PLAIN, SPLIT)
    )
    whole = aot.compile_step(AdamWStoSign, target, torch.bfloat16, Rows.ENDING, WHOLE)
    assert max(plain.spills, split.spills, whole.spills) <= 320
    if target == "sm_90":
        assert split.wide_loads == plain.wide_loads + tiles
        assert split.wide_stores == plain.wide_stores + tiles
print("compiled")
"""


def test_kernels_with_master_weights_compile() -> None:
    """Rests of 16 bits are read and written as wide as the parameter itself."""
    result = python("-c", SPLIT_MASTERS)
    assert result.stdout == "compiled\n", result.stderr


COLUMNS = r"""
import torch
from signconv.generated.adamw_stosign import AdamWStoSign
from signconv.runtime.program import Rows
from signconv.verification import aot

for target in ("sm_90", "gfx942"):
    flat, cut = (
        aot.compile_step(AdamWStoSign, target, torch.bfloat16, rows)
        for rows in (Rows.FLAT, Rows.CUT)
    )
    aot.compile_step(AdamWStoSign, target, torch.bfloat16, Rows.ENDING)
    assert (flat.wide_loads, flat.wide_stores) == (cut.wide_loads, cut.wide_stores), target
print("compiled")
"""


def test_kernels_of_some_columns_compile() -> None:
    """Whole rows of 32 are read and written as wide as where nothing is cut."""
    result = python("-c", COLUMNS)
    assert result.stdout == "compiled\n", result.stderr
