"""The speed that needs no GPU: counts from the machine code against tests/data/kernel_counts.json.

The table holds for the Triton that made it (another one brings another assembler); ``make counts``
refreshes it.
"""

import copy
import json
import os
import subprocess
from importlib import metadata

import pytest

from signconv.runtime.compat import HAS_TRITON
from signconv.verification.instructions import (
    KERNELS,
    differences,
    full_branch,
    parse,
    shortest_path,
)
from tests.support import ROOT, python

TABLE = ROOT / "tests" / "data" / "kernel_counts.json"
KEPT = json.loads(TABLE.read_text())
TRITON = metadata.version("triton") if HAS_TRITON else "none"

same_triton = pytest.mark.skipif(
    KEPT["triton"] != TRITON,
    reason=f"the table was made with Triton {KEPT['triton']}, this is {TRITON}: `make counts`",
)

#: A kernel with a full branch (16-byte accesses), a loop for tails, and padding.
SASS = """
        Function : step_kernel
        /*0000*/                   LDC R1, c[0x0][0x28] ;             /* 0x00000a00ff017b82 */
                                                                      /* 0x000ff00000000800 */
        /*0010*/                   ISETP.GE.AND P0, PT, R2, 0x100, PT ;   /* 0x0 */
        /*0020*/              @!P0 BRA 0x80 ;                             /* 0x0 */
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;       /* 0x0 */
        /*0040*/                   FADD R4, R4, R5 ;                      /* 0x0 */
        /*0050*/                   I2FP.F32.S32 R5, R4 ;                  /* 0x0 */
        /*0060*/                   STG.E.128 desc[UR4][R2.64], R4 ;       /* 0x0 */
        /*0070*/                   EXIT ;                                 /* 0x0 */
        /*0080*/                   LDG.E.U8 R4, desc[UR4][R2.64+0x10] ;   /* 0x0 */
        /*0090*/                   IADD3 R2, R2, 0x1, RZ ;                /* 0x0 */
        /*00a0*/               @P0 BRA 0x80 ;                             /* 0x0 */
        /*00b0*/                   EXIT ;                                 /* 0x0 */
        /*00c0*/                   BRA 0xc0 ;                             /* 0x0 */
        /*00d0*/                   NOP ;                                  /* 0x0 */
        /*00e0*/                   NOP ;                                  /* 0x0 */
"""


@pytest.fixture(scope="session")
def counted(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The table of this tree."""
    cache = str(tmp_path_factory.mktemp("cache"))
    done = python("-m", "signconv.verification.instructions", timeout=500, SIGNCONV_CACHE=cache)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@same_triton
def test_kernels_are_no_slower_than_the_table(counted: dict) -> None:
    """No spill, no narrower access, no count more than 2 % above the table."""
    assert counted["kernels"].keys() == KEPT["kernels"].keys() == KERNELS.keys()
    assert differences(counted, KEPT) == []


@pytest.mark.parametrize("label", KERNELS)
def test_table_describes_vectorized_kernels(label: str) -> None:
    """What was kept is worth keeping: 16 bytes at a time, few spills, a full branch of its own."""
    kept = KEPT["kernels"][label]
    assert kept["load_widths"]["16"] >= 2 and kept["store_widths"]["16"] >= 1
    assert kept["spills"] <= 128  # what a cap on registers costs (launch_shape)
    assert 0 < kept["full_branch"] < kept["instructions"]
    assert 10 < kept["per_element"] < 250
    assert sum(kept["classes"].values()) == kept["full_branch"]
    assert kept["classes"].get("other", 0) <= 0.02 * kept["full_branch"], "classes miss opcodes"


def slower(change: str) -> list[str]:
    """What the guard says when one kernel got worse."""
    worse = copy.deepcopy(KEPT)
    kernel = worse["kernels"]["adamw,stosign bf16"]
    if change == "spill":
        kernel["spills"] += 8
    elif change == "width":
        kernel["load_widths"]["16"] -= 1
    elif change == "ptx":
        kernel["ptx_wide_stores"] = 0
    elif change == "element":
        kernel["per_element"] = round(kernel["per_element"] * 1.03, 1)
    else:
        factor = {"3 %": 1.03, "1 %": 1.01}[change]
        extra = round(kernel["full_branch"] * factor) - kernel["full_branch"]
        kernel["full_branch"] += extra
        kernel["classes"]["integer"] += extra
    return differences(worse, KEPT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("spill", "bytes of stack per thread are spilled, were"),
        ("width", "accesses of 16 bytes in load_widths"),
        ("ptx", "ptx_wide_stores 0"),
        ("3 %", "(integer +"),
        ("element", "adamw,stosign bf16: per_element"),
    ],
)
def test_guard_speaks(change: str, words: str) -> None:
    (line,) = slower(change)
    assert words in line


def test_guard_allows_two_per_cent() -> None:
    assert slower("1 %") == []


def test_machine_code_is_read() -> None:
    code = parse(SASS)
    assert [x.address for x in code] == list(range(0, 0xD0, 16))
    kinds = [x.kind for x in code[:7]]
    assert kinds == ["constant", "integer", "control", "load", "fp32", "convert", "store"]
    assert [x.width for x in code if x.kind in ("load", "store")] == [16, 16, 1]


def test_full_branch_leaves_out_the_loop_for_tails() -> None:
    assert [x.address for x in full_branch(parse(SASS))] == list(range(0, 0x80, 16))


#: Behind the load: a way round two instructions for rare values, and BSSY, which is no jump.
DETOUR = """
        /*0000*/                   BSSY B0, 0x60 ;                        /* 0x0 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;       /* 0x0 */
        /*0020*/               @P0 BRA 0x50 ;                             /* 0x0 */
        /*0030*/                   FADD R4, R4, R5 ;                      /* 0x0 */
        /*0040*/                   FADD R4, R4, R5 ;                      /* 0x0 */
        /*0050*/                   FMUL R4, R4, R5 ;                      /* 0x0 */
        /*0060*/                   STG.E.128 desc[UR4][R2.64], R4 ;       /* 0x0 */
        /*0070*/                   EXIT ;                                 /* 0x0 */
"""


def test_shortest_path_leaves_out_what_rare_values_need() -> None:
    assert [x.address for x in shortest_path(parse(SASS))] == list(range(0, 0x80, 16))
    found = [x.address for x in shortest_path(parse(DETOUR))]
    assert found == [0x00, 0x10, 0x20, 0x50, 0x60, 0x70]
    assert len(full_branch(parse(DETOUR))) == 8
    assert shortest_path(parse("")) == []


def test_a_uniform_predicate_among_the_operands_is_a_condition() -> None:
    """sm_100 writes it there; the branch falls through to what a full chunk does."""
    code = parse(DETOUR.replace("   @P0 BRA 0x50", "      BRA.U UP0, 0x50"))
    assert [x.address for x in shortest_path(code)] == [0x00, 0x10, 0x20, 0x50, 0x60, 0x70]
    assert len(full_branch(code)) == 8


#: A shuffle with a way of its own, out of line, for warps that came apart; it comes back behind it.
DIVERGED = """
        /*0000*/                   LDG.E.128 R4, desc[UR4][R2.64] ;       /* 0x0 */
        /*0010*/                   BRA.DIV UR5, 0x70 ;                    /* 0x0 */
        /*0020*/                   SHFL.BFLY PT, R5, R4, 0x1, 0x1f ;      /* 0x0 */
        /*0030*/                   FMNMX R4, R4, R5, !PT ;                /* 0x0 */
        /*0040*/                   FADD R4, R4, R5 ;                      /* 0x0 */
        /*0050*/                   STG.E.128 desc[UR4][R2.64], R4 ;       /* 0x0 */
        /*0060*/                   EXIT ;                                 /* 0x0 */
        /*0070*/                   WARPSYNC.COLLECTIVE R22, 0x80 ;        /* 0x0 */
        /*0080*/                   BRA {back} ;                           /* 0x0 */
"""


@pytest.mark.parametrize("back", ["0x30", "0x50"], ids=["longer", "shorter"])
def test_warps_do_not_come_apart(back: str) -> None:
    """All threads of a warp go the same way, so the one beside it counts in neither number."""
    code = parse(DIVERGED.format(back=back))
    together = list(range(0, 0x70, 16))
    assert [x.address for x in shortest_path(code)] == together
    assert [x.address for x in full_branch(code)] == together


def test_one_command_refreshes_the_table() -> None:
    """`make counts` names the module that was run above, and the file that is compared."""
    # Under `make test` this make would be a sub-make, with that one's flags and its chatter
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    alone = {k: v for k, v in os.environ.items() if k not in outer}
    done = subprocess.run(
        ["make", "-n", "counts"], cwd=ROOT, env=alone, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith(
        "-m signconv.verification.instructions tests/data/kernel_counts.json"
    )
