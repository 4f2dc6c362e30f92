"""Checkpoints of earlier releases load into today's classes, which go on from there."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.adamw import AdamW

from signconv import pipeline
from signconv.lower.identity import former, program_hash
from signconv.runtime import legacy, master
from signconv.runtime.compat import HAS_LLVM, warn_once
from signconv.runtime.formats import named
from signconv.runtime.program import NOISES, OptimizerProgram, Step
from signconv.runtime.reference.memory import load_moment
from signconv.verification.bits import load_class
from tests.support import ROOT

CHECKPOINTS = sorted((ROOT / "tests" / "data" / "checkpoints").glob("v1_*.pt"))
STEP = Step(None, None)
BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(not HAS_LLVM, reason="llvmlite is missing")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")


def read(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def built(saved: dict[str, Any], folder: Path) -> type:
    made = pipeline.build(**saved["build"])
    return load_class(pipeline.write(made.module, folder)[0])


def loaded(saved: dict[str, Any], folder: Path, backend: str) -> tuple[list, Any]:
    params = [torch.nn.Parameter(p.clone()) for p in saved["params"]]
    optimizer = built(saved, folder)(params, backend=backend, **saved["arguments"])
    optimizer.load_state_dict(saved["state_dict"])
    return params, optimizer


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bits, signs of zeros included."""
    raw = [x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def test_every_storage_has_a_checkpoint() -> None:
    states = {read(p)["build"]["state"] for p in CHECKPOINTS}
    assert states == {"fp8", "fp8-raw", "bf16", "fp32"} and len(CHECKPOINTS) == 9


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda p: p.stem)
def test_a_checkpoint_of_0_1_is_taken_over(path: Path, folder: Path) -> None:
    """Bit by bit, but for moments that are stored in other codes now: those of E5M2 exactly, roots
    to the nearest code of E6M2, a step of which is a quarter."""
    saved = read(path)
    _, optimizer = loaded(saved, folder, "reference")
    _, formats = optimizer.program.former or ("", {})
    state = optimizer.state_dict()["state"]
    for i, entry in saved["state_dict"]["state"].items():
        # 0.1 had no floors, and bf16 where rows were no multiples of 32
        scaled = {m.name for m in optimizer.program.moments if m.stored.scaled}
        plain = {m for m in scaled if f"{m}_scale" not in entry}
        added = {f"{m}_scale" for m in plain} | set(optimizer.program.floors)
        assert state[i].keys() == entry.keys() | added
        moved = {n for m in formats for n in (m, f"{m}_scale") if f"{m}_scale" in entry} | plain
        assert [n for n, x in entry.items() if n not in moved and not same(state[i][n], x)] == []
        for m in optimizer.program.moments:
            if m.name not in moved:
                continue
            if m.name in plain:
                old = entry[m.name].float().view(-1)
                scale = state[i][f"{m.name}_scale"]
                new = load_moment(state[i][m.name], scale, m.stored, old.numel())
                assert bool(((new - old).abs() <= old.abs() / 8 + old.abs().max() / 256).all())
                continue
            old = load_moment(entry[m.name], entry[f"{m.name}_scale"], named(formats[m.name]))
            new = load_moment(state[i][m.name], state[i][f"{m.name}_scale"], named(m.format))
            assert old.max() > 0
            if formats[m.name] == "e5m2":
                assert torch.equal(old, new)
            else:
                assert bool(((new - old).abs() <= old / 8 * (1 + 1e-6)).all())


def test_which_checkpoints_hold_other_codes() -> None:
    found = {
        f
        for p in CHECKPOINTS
        for f in (former(pipeline.build(**read(p)["build"]).kernel) or ("", {}))[1].values()
    }
    assert found == {"e5m2", "e4m3-root3"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda p: p.stem)
def test_it_goes_on_where_0_1_went(path: Path, backend: str, folder: Path) -> None:
    """Three steps, with other random bits than 0.1's: where those round moments alone, parameters
    end within 10 % of the way that 0.1 moved them; with fp32 state, within the rounding of three
    steps, which are rounded less often than in 0.1 (fused multiply-adds)."""
    saved = read(path)
    params, optimizer = loaded(saved, folder, backend)
    for grads in saved["grads"]:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
    state = optimizer.state_dict()["state"]
    assert all(same(state[i]["step"], x["step"]) for i, x in saved["state_after"].items())
    assert all(p.isfinite().all() for p in params)
    exact = optimizer.program.storage in ("fp32", "fp8-raw")
    masters = saved["arguments"].get("master") == "split"
    if saved["build"].get("convert") or (params[0].dtype != torch.float32 and not masters):
        return  # noise as large as the steps: signs, or the rounding of bf16 parameters
    for i, p in enumerate(params):
        then, entry = saved["state_after"][i], saved["state_dict"]["state"][i]
        after = master.read(saved["after"][i], then).double()  # beside bf16 the exact weights
        before = master.read(saved["params"][i], entry).double()
        now = master.read(p.detach(), optimizer.state[p]).double()
        moved = float((after - before).norm())
        assert moved > 0 and float((now - after).norm()) < 0.1 * moved
        apart = (now - after).abs()
        assert not exact or bool((apart <= 3 * 2.0**-23 * after.abs().clamp(min=moved)).all())


@pytest.mark.parametrize("path", CHECKPOINTS[:1], ids=lambda p: p.stem)
def test_it_is_saved_again_under_todays_hash(path: Path, folder: Path) -> None:
    saved = read(path)
    old = saved["state_dict"]["param_groups"][0]["program"]
    _, optimizer = loaded(saved, folder, "reference")
    (group,) = optimizer.state_dict()["param_groups"]
    assert group["program"] == optimizer.program.hash != old
    assert saved["state_dict"]["param_groups"][0]["program"] == old


def test_an_optimizer_that_was_pickled_is_converted() -> None:
    """Its second moments in E5M2 come out in E5M3, exactly, and it goes on."""
    p = torch.nn.Parameter(torch.randn(4, 64, generator=torch.Generator().manual_seed(1)))
    optimizer = AdamW([p], seed=1)
    for _ in range(3):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
        optimizer.step()
    assert optimizer.program.former is not None
    was, formats = optimizer.program.former
    assert formats == {"v": "e5m2"}
    old, entry = named("e5m2"), optimizer.state[p]
    v = load_moment(entry["v"], entry["v_scale"], named("e5m3"))
    code, scale = old.encode(v, torch.zeros(v.shape, dtype=torch.int32))
    assert scale is not None
    entry["v"], entry["v_scale"] = code.view(4, 64), scale.view(4, 2)
    optimizer.param_groups[0]["program"] = was
    again = pickle.loads(pickle.dumps(optimizer))
    (group,) = again.param_groups
    assert group["program"] == optimizer.program.hash
    got = again.state[group["params"][0]]
    exact = old.decode(code, scale)
    assert torch.equal(load_moment(got["v"], got["v_scale"], named("e5m3")), exact)
    assert same(got["m"], entry["m"])


def test_a_hash_of_another_program_is_refused(folder: Path) -> None:
    saved, other = read(CHECKPOINTS[0]), read(CHECKPOINTS[2])
    saved["state_dict"] = other["state_dict"]
    with pytest.raises(
        ValueError,
        match=r"the optimizer that wrote it(, and where that is the same rule .*)? \[SC503\]$",
    ):
        loaded(saved, folder, "reference")


def test_a_program_of_the_users_own_is_told_what_to_do(folder: Path) -> None:
    saved = read(CHECKPOINTS[0])
    saved["state_dict"]["param_groups"][0]["program"] = "0123456789abcdef"
    with pytest.raises(ValueError, match=r"release 0\.1.*group\['program'\].*CHANGELOG.*SC503"):
        loaded(saved, folder, "reference")


def rows() -> list[tuple[str, list[str], list[str]]]:
    made = []
    for name in legacy.TABLES:
        lines = (ROOT / "signconv" / "runtime" / name).read_text().splitlines()
        for line in lines:
            (old, new), label = line.partition("#")[0].split(), line.partition("#")[2].split()
            made.append((old, new.split(","), label))
    return made


def test_the_table_is_well_formed() -> None:
    hashes = [x for old, new, _ in rows() for x in (old, *new)]
    assert len({old for old, _, _ in rows()}) == len(rows()) == 426
    assert all(len(x) == 16 and int(x, 16) >= 0 for x in hashes)
    assert not {old for old, _, _ in rows()} & {x for _, new, _ in rows() for x in new}


@pytest.mark.parametrize("row", rows()[::20], ids=lambda r: "-".join(r[2]))
def test_a_row_names_the_identity_of_what_it_says(row: tuple[str, list[str], list[str]]) -> None:
    old, new, (spec, convert, state, math) = row
    convert = re.sub(r"\bstosign\b", "stosign:noise=fresh", convert)  # 0.1 had no other
    made = pipeline.build(spec, convert=None if convert == "-" else convert, state=state, math=math)
    before = former(made.kernel)
    assert (before[0] if before else program_hash(made.kernel)) == new[0]
    assert legacy.known(old)
    program = OptimizerProgram(
        "Any", program_hash(made.kernel), spec, (), state, (), (), (), 1, STEP, STEP, former=before
    )
    formats = before[1] if before else {}
    assert legacy.stored(old, program) == legacy.stored(new[0], program) == formats
    assert legacy.stored(program.hash, program) == {}
    assert legacy.stored(old[::-1], program) is None and legacy.stored(None, program) is None


# ---------------------------------------------------------------- another noise of the sign


def stepped(convert: str, state: str = "fp8") -> tuple[torch.nn.Parameter, Any]:
    p = torch.nn.Parameter(torch.randn(4, 64, generator=torch.Generator().manual_seed(1)))
    optimizer = pipeline.compile("adamw", convert=convert, state=state)([p], seed=1)
    p.grad = torch.ones_like(p)
    optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("before", NOISES)
@pytest.mark.parametrize("after", NOISES)
def test_state_goes_from_one_noise_to_another_with_a_word(before: str, after: str) -> None:
    """The moments mean the same, whatever the noise: they are taken as they are."""
    warn_once.cache_clear()
    p, old = stepped(f"stosign:noise={before}")
    saved = old.state_dict()
    q, new = stepped(f"stosign:noise={after}")
    words = f"written with {before} noise .* goes on with {after} noise"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        new.load_state_dict(saved)
    assert bool(said) is (before != after)
    assert all(re.search(words, str(w.message)) for w in said)
    assert same(new.state[q]["m"], old.state[p]["m"]) and int(new.state[q]["step"]) == 1
    assert new.state_dict()["param_groups"][0]["program"] == new.program.hash


def test_a_sign_and_none_are_two_programs() -> None:
    _, old = stepped("stosign")
    with pytest.raises(ValueError, match="SC503"):
        AdamW([torch.nn.Parameter(torch.ones(4, 64))]).load_state_dict(old.state_dict())


SIGNS = [p for p in CHECKPOINTS if "stosign" in (read(p)["build"].get("convert") or "")]


@pytest.mark.parametrize("path", SIGNS, ids=lambda p: p.stem)
def test_signs_of_0_1_had_fresh_noise(path: Path) -> None:
    build = read(path)["build"]
    cls = pipeline.compile(build["spec"], convert=build["convert"], state=build["state"])
    theirs = read(path)["state_dict"]["param_groups"][0]["program"]
    assert legacy.noise(theirs, cls.program) == "fresh" != cls.program.noise
