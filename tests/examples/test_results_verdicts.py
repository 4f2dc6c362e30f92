"""examples/results: what docs/papers.md may say of a claim, from records alone."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.support import ROOT

RESULTS = ROOT / "examples" / "results"
sys.path.insert(0, str(RESULTS))
papers = pytest.importorskip("papers")
plan = pytest.importorskip("plan")
claims, optimizers, page, papers_page, verdicts, speed, s3, settings, finetune, larger, muon = (
    importlib.import_module(name)
    for name in (
        "claims", "optimizers", "page", "papers_page", "verdicts", "papers_speed", "papers_s3",
        "papers_settings", "papers_finetune", "papers_larger", "papers_muon",
    )
)  # fmt: skip
sys.path.remove(str(RESULTS))

SCRIPTS = dict(zip(papers_page.CLAIMS, (speed, s3, settings, finetune, larger, muon)))
STEPS, START = 200, 10.0
SPREAD = 0.004  # half the range over the seeds
Record = dict[str, Any]

# ---------------------------------------------------------------- records


def record(run: Any, loss: float, **changed: Any) -> Record:
    """A run whose held-out loss falls in a straight line from START to ``loss``."""
    made = {
        **vars(run), "status": "ok", "steps": STEPS, "steps_done": STEPS, "tokens_per_step": 16_384,
        "held_out": [[0, START], [STEPS, round(loss, 5)]], "bytes_per_token": 4.0,
        "tokens_per_second": 100_000, "seconds": 33.0, "optimizer_ms": 0.5, "peak_gib": 10.0,
        "state_bytes_per_parameter": 2.0, "spikes": 0, "update_rms": {},
        "zero_shares": {"103": {"m": [0.0, 0.0], "v": [0.0, 0.0]}},
        "other_held_out": {"python": [3.0, 3.5]} if run.text == "headers" else {},
        "train_loss": {"median": [5.0] * 20, "max": [6.0] * 20},
    }  # fmt: skip
    if run.detail:
        signs = {"rms": 0.3, "mean": 0.2, "above": 0.004}
        made["sign_means"] = {"1": {**signs, "above": 1.0}, "103": signs, "1000": signs}
        made["layers"] = {"embedding": {"m": 0.0, "v": 0.0, "largest_g": 0.1}}
        made["histogram"] = {"log2": list(range(-36, 5, 2)), "zero": 0.1, "shares": [0.05] * 22}
    return made | changed


def whole(
    loss: Callable[[str], float] = lambda name: 3.0,
    claims_: tuple[str, ...] = tuple(papers.MODELS),
    changed: Callable[[Any], Mapping[str, Any]] = lambda run: {},
) -> dict[str, Record]:
    """The records of a finished plan; ``loss`` by arm, at the middle of its sweep, seed 2."""
    done: dict[str, Record] = {}
    while runs := list(plan.pending(done, {papers.CHECKPOINT}, plan.FULL_SCALE, claims_)):
        for run in runs:
            best = optimizers.rate(optimizers.CHOICES[run.optimizer].middle)
            off = math.log10(run.lr * (10 if run.text == "headers" else 1) / best)
            end = loss(run.optimizer) + 0.3 * off**2 + SPREAD * (run.seed - 2)
            done[run.id] = record(run, end, **changed(run))
    return done


def summary(name: str, records: Mapping[str, Record]) -> Any:
    """What a script writes."""
    kept = claims.kept(records, name, plan.FULL_SCALE)
    return SCRIPTS[name].summarize(kept, plan.FULL_SCALE)


def said(name: str, records: Mapping[str, Record]) -> dict[str, str]:
    """Its verdicts, by claim and condition."""
    lines = summary(name, records)["verdicts"]
    return {f"{x['claim']} | {x['condition']}": x["verdict"] for x in lines}


def the(found: Mapping[str, str], part: str) -> str:
    """The one verdict whose claim or condition has ``part``."""
    (verdict,) = {v for k, v in found.items() if part in k}
    return verdict


def row(name: str, loss: float, seeds: tuple[int, ...] = papers.SEEDS, broken: bool = False) -> Any:
    """The row of an arm with three lrs, whose best ends at ``loss``, and its records."""
    records = {}
    for place in (-1, 0, 1):
        lr = optimizers.rate(optimizers.CHOICES[name].middle + place)
        for seed in seeds if place == 0 else (1,):
            run = papers.make("papers", name, lr, seed, papers.TOKENS)
            end = loss + 0.1 * abs(place) + SPREAD * (seed - 2)
            down = {"held_out": [[0, START], [100, end - 1], [STEPS, end]]} if broken else {}
            records[run.id] = record(run, end, **down)
    return verdicts.row(records, name, papers.ALL), records


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("cases", "verdict"),
    [
        ({}, verdicts.NOT_RUN),
        ({"a": True, "b": True}, verdicts.REPRODUCED),
        ({"a": True, "b": False}, verdicts.CONDITION),
        ({"a": True, "b": None}, verdicts.CONDITION),
        ({"a": False, "b": None}, verdicts.OPEN),
        ({"a": False, "b": False}, verdicts.REFUTED),
    ],
)
def test_claims_of_several_cases(cases: dict[str, bool | None], verdict: str) -> None:
    found, why = verdicts.together(cases)
    assert found == verdict and all(name in why for name in cases)


@pytest.mark.parametrize(
    ("losses", "status", "broke"),
    [
        ((10.0, 4.0, 3.0), "ok", False),
        ((10.0, 4.0, 4.4), "ok", False),
        ((10.0, 4.0, 4.6), "ok", True),
        ((10.0, 12.0, 13.0), "ok", True),
        ((10.0, 4.0, None), "diverged", True),
    ],
)
def test_what_broke_down(losses: tuple[float | None, ...], status: str, broke: bool) -> None:
    assert verdicts.broken_down({"status": status, "held_out": list(enumerate(losses))}) is broke


def test_rows_have_medians_and_a_spread_of_all_seeds() -> None:
    found, records = row("adamw-ours", 3.0)
    assert found["held_out"]["median"] == 3.0 and found["spread"] == pytest.approx(SPREAD)
    assert found["interior"] and found["complete"] and verdicts.settled([found])
    assert verdicts.middle(found["held_out"], 4) == "3.0000 ± 0.0040"
    assert not verdicts.settled([row("adamw-ours", 3.0, seeds=(1, 2))[0]])
    lr = found["lr"]
    records[f"papers/adamw-ours/{lr:g}/2"]["status"] = "diverged"
    found = verdicts.row(records, "adamw-ours", papers.ALL)
    assert found["held_out"]["diverged"] == 1 and found["held_out"]["median"] == 3.004
    assert "1 diverged" in verdicts.middle(found["held_out"])


def swept(losses: Mapping[int, float]) -> Any:
    """AdamW's row of all seeds at these places beside the middle of its sweep."""
    middle = optimizers.CHOICES["adamw-ours"].middle
    records = {}
    for place, loss in losses.items():
        for seed in papers.SEEDS:
            lr = optimizers.rate(middle + place)
            run = papers.make("papers", "adamw-ours", lr, seed, papers.TOKENS)
            records[run.id] = record(run, loss)
    return verdicts.row(records, "adamw-ours", papers.ALL)


@pytest.mark.parametrize(
    ("losses", "complete", "interior"),
    [
        ((3.2, 3.0, 3.1), True, True),
        ((3.2, 3.1, 3.0), False, False),  # the next lr is wanted
        ((3.2, 3.1, 3.0, 2.9, 2.8), True, False),  # the widest sweep ends at its edge
        ((3.2, None, 3.0, 3.1), False, True),
    ],
)
def test_a_sweep_settles_if_it_is_whole_and_has_its_best_inside(
    losses: tuple[float | None, ...], complete: bool, interior: bool
) -> None:
    found = swept({i - 1: x for i, x in enumerate(losses) if x is not None})
    assert (found["complete"], found["interior"]) == (complete, interior)
    assert verdicts.settled([found]) is (complete and interior)


def test_arms_of_one_seed_borrow_the_widest_spread() -> None:
    one, _ = row("signum-ours", 3.0, seeds=(1,))
    wide, narrow = ({**row("adamw-ours", 3.0)[0], "spread": x, "arm": str(x)} for x in (0.2, 0.1))
    assert verdicts.borrow(one, [narrow, None, wide])["borrowed"] == "0.2"
    assert verdicts.borrow(one, [one, None])["spread"] is None
    assert verdicts.borrow(wide, [narrow])["borrowed"] == ""
    broken = {**wide, "broken": 3}
    assert verdicts.borrow(one, [narrow, broken])["borrowed"] == "0.1"


def test_differences_count_beyond_both_spreads() -> None:
    a, b = row("adamw-ours", 3.0)[0], row("signum-ours", 3.0 + 3 * SPREAD)[0]
    assert verdicts.below(a, b) is True and verdicts.below(b, a) is False
    near = row("signum-ours", 3.0 + 1.5 * SPREAD)[0]
    assert verdicts.below(a, near) is None and verdicts.below(near, a) is None
    down = {**b, "broken": 3}
    assert verdicts.below(near, down) is True and verdicts.below(down, near) is False
    assert verdicts.below(down, down) is None
    assert verdicts.ends_below(a, {"b": b, "near": near})[0] == verdicts.CONDITION
    assert verdicts.ends_below(b, {"a": a})[0] == verdicts.REFUTED
    assert verdicts.ends_below(a, {"b": None})[0] == verdicts.OPEN
    assert verdicts.ends_below(None, {"b": None})[0] == verdicts.NOT_RUN


def sooner(gain: float, **others: Any) -> tuple[str, str]:
    """The verdict where an arm is ``gain`` times sooner at the loss of a baseline."""
    ours, records = row("stosignsgd-ours", START - 5 * gain)
    rows: dict[str, Any] = {"stosignsgd": ours}
    for name in ("signum", "lion"):
        rows[name], more = row(f"{name}-ours", others.get(name, 5.0))
        records |= more
    return verdicts.faster(rows, speed.speedups(records, rows), 1.44)


def test_verdicts_on_tokens_to_equal_loss() -> None:
    assert sooner(1.6)[0] == verdicts.REPRODUCED and "1.60 times" in sooner(1.6)[1]
    found, why = sooner(1.2)
    assert found == verdicts.REFUTED and "by less than 1.44" in why
    found, why = sooner(0.9)
    assert found == verdicts.REFUTED and "0.00 times at most" in why
    assert sooner(1.6, lion=4.0) == (verdicts.CONDITION, "against signum alone")
    # 1.4395 times, and 1.44 where the spreads lift the baseline's loss by 2 * 0.004
    assert sooner(1.4395)[0] == verdicts.OPEN
    assert sooner(1.43)[0] == verdicts.REFUTED


def test_baselines_that_break_down_are_named_and_not_counted() -> None:
    ours, records = row("stosignsgd-ours", 2.0)
    good, more = row("signum-ours", 5.0)
    bad, most = row("adamw-ours", 9.0, broken=True)
    records |= more | most
    rows = {"stosignsgd": ours, "signum": good, "adamw": bad}
    found, why = verdicts.faster(rows, speed.speedups(records, rows), 1.44)
    assert found == verdicts.REPRODUCED and why.endswith("adamw breaks down")
    rows = {"stosignsgd": ours, "adamw": bad}
    found, _ = verdicts.faster(rows, speed.speedups(records, rows), 1.44)
    assert found == verdicts.UNTESTABLE
    rows = {"adamw": bad, "signum": good}
    assert verdicts.faster(rows, speed.speedups(records, rows), 1.44)[0] == verdicts.REFUTED
    assert verdicts.faster({"a": None, "b": None}, {}, 1.44)[0] == verdicts.NOT_RUN


# ---------------------------------------------------------------- a whole plan


def good(name: str) -> float:
    """StoSignSGD and S3GD ahead of all, S3 behind, as nobody claims."""
    return 3.0 - (0.9 if "stosignsgd" in name else 0) + (0.1 if name.startswith("s3-") else 0)


BROKEN = [[0, START], [100, 8.0], [STEPS, 9.0]]


def breaks(*names: str, zeros: float = 0.9999) -> Callable[[Any], Mapping[str, Any]]:
    """Arms that break down, with shares of zeros at step 103."""

    def changed(run: Any) -> Mapping[str, Any]:
        if not run.optimizer.startswith(names):
            return {}
        layers = {"embedding": {"m": zeros, "v": 1.0, "largest_g": 7.0}}
        return {"held_out": BROKEN, **({"layers": layers} if run.detail else {})}

    return changed


adamw_breaks = breaks("adamw-theirs")


def test_headline_of_a_whole_plan() -> None:
    only = ("papers", "papers_s3")
    found = said("papers_speed", whole(good, only))
    for regime in speed.REGIMES.values():
        assert the(found, f"| {regime}") == verdicts.REFUTED  # 7.9/7 = 1.13 times
    assert the(found, "AdamW fails") == the(found, "all zeros") == verdicts.REFUTED
    records = whole(good, only, adamw_breaks)
    found = said("papers_speed", records)
    assert the(found, "AdamW fails") == the(found, "all zeros") == verdicts.CONDITION
    records_ = whole(good, only, breaks("adamw-theirs", "stosignsgd-theirs", zeros=0.99))
    found = said("papers_speed", records_)
    assert the(found, "AdamW fails") == the(found, "all zeros") == verdicts.REFUTED
    made = summary("papers_speed", records)["rows"]["theirs"]
    (zeros,) = made["zeros"]["rows"]
    assert zeros["largest_g"] == 0.1 and zeros["shares"][4:6] == [0.9999, 1.0]
    assert made["zeros"]["broken"] == ["adamw-theirs"] and made["factors"]["adamw"] is None
    del records[next(k for k in records if k.startswith("papers/adamw-theirs64/") and k[-1] == "2")]
    assert the(said("papers_speed", records), "AdamW fails") == verdicts.CONDITION  # it is broken
    del records["papers/stosignsgd-theirs/0.0003/2"]
    assert the(said("papers_speed", records), "AdamW fails") == verdicts.OPEN


def with_spikes(**counts: tuple[int, int]) -> Callable[[Any], Mapping[str, Any]]:
    """Spikes of an arm at its best lr and at more, by name."""

    def changed(run: Any) -> Mapping[str, Any]:
        two = counts.get(run.optimizer.removesuffix("-ours").replace("-", "_"), (0, 0))
        at_best = run.lr <= optimizers.rate(optimizers.CHOICES[run.optimizer].middle)
        return {"spikes": two[0] if at_best else two[1]}

    return changed


def test_spikes_of_s3_and_of_clipped_updates() -> None:
    only = ("papers", "papers_s3")
    spiky = [
        ({"adamw": (0, 3)}, verdicts.REPRODUCED, verdicts.CONDITION),
        (dict(adamw=(0, 3), adamw_expected=(0, 1)), verdicts.REPRODUCED, verdicts.REPRODUCED),
        (dict(adamw=(0, 3), adamw_expected=(0, 3)), verdicts.REPRODUCED, verdicts.REFUTED),
        (dict(), verdicts.UNTESTABLE, verdicts.UNTESTABLE),
        (dict(adamw=(0, 3), s3=(0, 1)), verdicts.REFUTED, verdicts.CONDITION),
    ]
    for counts, spikes, updates in spiky:
        found = said("papers_s3", whole(claims_=only, changed=with_spikes(**counts)))
        assert (the(found, "no loss spikes"), the(found, "fewer loss spikes")) == (spikes, updates)
        assert the(found, "half of the steps") == verdicts.REFUTED


SETTINGS = ("papers", "papers_s3", "papers_settings")


def test_settings_of_a_whole_plan() -> None:
    found = said("papers_settings", whole(lambda n: good(n) - 4 * ("paper" in n), SETTINGS))
    assert the(found, "as its paper writes it") == verdicts.REPRODUCED
    assert the(found, "v2, a reconstruction") == verdicts.REFUTED
    assert the(found, "every p and beta") == verdicts.REFUTED
    assert the(found, "σ >= abs(m)") == verdicts.REPRODUCED
    better = {"s3-p2-0.9": 2.0, "s3-ours": 3.0}
    found = said("papers_settings", whole(lambda n: better.get(n, 3.5), SETTINGS))
    assert the(found, "every p and beta") == verdicts.CONDITION
    found = said("papers_settings", whole(lambda n: 2.0 + ("adamw" in n), SETTINGS))
    assert the(found, "every p and beta") == verdicts.REPRODUCED
    records = whole(lambda n: 2.0 + ("adamw" in n), SETTINGS)
    del records[next(key for key in records if "/s3-p5-0.98/" in key)]
    assert the(said("papers_settings", records), "every p and beta") == verdicts.OPEN


def test_settings_have_the_spread_of_what_has_all_seeds() -> None:
    records = whole(good, SETTINGS)
    made = {r["arm"]: r for r in summary("papers_settings", records)["rows"]}
    assert made["stosignsgd-paper-ours"]["borrowed"] == ""
    for key in [k for k in records if "-paper-ours" in k and k.endswith(("/2", "/3"))]:
        del records[key]
    made = {r["arm"]: r for r in summary("papers_settings", records)["rows"]}
    paper = made["stosignsgd-paper-ours"]
    assert paper["borrowed"].endswith("-ours") and "within the spread" in paper["beside"]
    for key in [k for k in records if k.endswith(("/2", "/3"))]:
        del records[key]
    assert the(said("papers_settings", records), "as its paper writes it") == verdicts.OPEN
    made = {r["arm"]: r for r in summary("papers_settings", records)["rows"]}
    assert made["stosignsgd-paper-ours"]["beside"].endswith("(no spread yet)")


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        (dict(adamw=(0, 2), adamw_noclip=(1, 4)), verdicts.REPRODUCED),
        (dict(adamw=(0, 0), adamw_noclip=(1, 4)), verdicts.CONDITION),
        (dict(adamw=(2, 1), adamw_noclip=(4, 4)), verdicts.REFUTED),
        (dict(), verdicts.UNTESTABLE),
    ],
)
def test_spikes_that_grow_with_the_lr(counts: dict[str, Any], verdict: str) -> None:
    found = said("papers_settings", whole(claims_=SETTINGS, changed=with_spikes(**counts)))
    assert the(found, "more loss spikes") == verdict


def test_sigma_is_looked_at_from_step_103_on() -> None:
    def clipped(*names: str) -> str:
        late = {"rms": 0.9, "mean": 0.8, "above": 0.3}
        found = said(
            "papers_settings",
            whole(
                claims_=SETTINGS,
                changed=lambda r: {"sign_means": {"103": late}} if r.optimizer in names else {},
            ),
        )
        return the(found, "σ >= abs(m)")

    arms = settings.STAGES[15].arms
    assert clipped() == verdicts.REPRODUCED  # whatever step 1 has: its m is all of σ
    assert clipped(arms[0]) == verdicts.CONDITION
    assert clipped(*arms) == verdicts.REFUTED


TUNING = ("papers", "papers_finetune")


def test_fine_tuning() -> None:
    def tuned(**losses: float) -> dict[str, str]:
        by_name = {f"{k.replace('_', '-')}-ours": v for k, v in losses.items()}
        return said("papers_finetune", whole(lambda n: by_name.get(n, 3.0), TUNING))

    same = tuned()
    assert the(same, "nearly equivalent") == verdicts.REPRODUCED
    assert the(same, "fine-tunes better") == verdicts.OPEN  # within the spread of both
    assert the(tuned(s3gd=2.5, s3gd_raw=3.1), "nearly equivalent") == verdicts.CONDITION
    assert the(tuned(s3gd=3.1, s3gd_raw=3.1), "nearly equivalent") == verdicts.REFUTED
    assert the(tuned(stosignsgd=2.9), "fine-tunes better") == verdicts.REPRODUCED
    assert the(tuned(stosignsgd=2.9, adamw=2.8), "fine-tunes better") == verdicts.CONDITION
    assert the(tuned(stosignsgd=3.1), "fine-tunes better") == verdicts.REFUTED
    records = whole(claims_=TUNING)
    made = {r["arm"]: r for r in summary("papers_finetune", records)["rows"]}
    assert made["s3gd-ours"]["forgets"] == 0.5 and made["s3gd-ours"]["lr"] == 1e-4


def test_larger_models_have_the_spreads_of_the_small() -> None:
    records = whole(lambda n: good(n) - 3 * ("stosignsgd" in n))
    found = said("papers_larger", records)
    tokens = [v for k, v in found.items() if "fewer tokens" in k]
    assert tokens == [verdicts.REPRODUCED] * 5
    assert the(found, "half of the steps") == the(found, "AdamW fails") == verdicts.REFUTED
    rows = summary("papers_larger", records)["rows"]
    by_name = {r["arm"]: r for r in rows["papers_336"]["rows"]}
    assert by_name["s3-ours"]["borrowed"] == "s3-ours"
    assert by_name["adamw-fp32-ours"]["borrowed"] == "adamw-ours"
    for r in [r for k, r in records.items() if k.startswith("papers_336/stosignsgd")]:
        r["tokens_per_second"] *= 2
    first = summary("papers_larger", records)["rows"]["papers_336"]["factors"][0]
    assert first["seconds"] == pytest.approx(2 * first["found"]["factor"]["median"], rel=1e-3)
    found = said("papers_larger", whole(good, changed=adamw_breaks))
    assert the(found, "AdamW fails") == verdicts.CONDITION
    both = whole(good, changed=breaks("adamw-theirs", "stosignsgd-theirs"))
    assert the(said("papers_larger", both), "AdamW fails") == verdicts.REFUTED
    for key in [k for k in records if k.startswith("papers/signum-") and k[-1] == "2"]:
        del records[key]  # its spread is that of another arm
    assert list(said("papers_larger", records).values()).count(verdicts.REPRODUCED) == 5
    for key in [k for k in records if k.endswith("/2")]:
        del records[key]
    assert set(said("papers_larger", records).values()) == {verdicts.OPEN}


# ---------------------------------------------------------------- the page


def rendered(records: Mapping[str, Record], monkeypatch: pytest.MonkeyPatch) -> str:
    """docs/papers.md as if these were the records."""
    values = page.context() | papers_page.context(records)
    values |= {name: summary(name, records) for name in SCRIPTS}
    values["papers_verdicts"] = [x for name in SCRIPTS for x in values[name]["verdicts"]]
    monkeypatch.setattr(page, "context", lambda: values)
    text: str = page.render()["papers.md"]
    return text


def test_sections_say_by_themselves_what_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    text = rendered({}, monkeypatch)
    lines = text[text.index("## Verdicts") : text.index("A claim of several")].splitlines()
    verdicts_ = [x for x in lines if x.startswith("| ")][1:-1]
    assert len(verdicts_) > 20 and all(x.endswith("| not yet run |") for x in verdicts_)
    sections = text[: text.index("## Setting\n")].count("\nNot yet run.")
    assert sections == 15 and ".png" not in text
    assert all(f"| {stage.number} | {stage.question} |" in text for stage in papers.STAGES)


def test_a_finished_plan_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    text = rendered(whole(good, changed=adamw_breaks), monkeypatch)
    body = text[: text.index("## Setting\n")]
    assert "Not yet run." not in body and "| not yet run" not in body
    assert body.count(".png") == len(SCRIPTS)
    tables = [part for part in body.split("\n\n") if "|---|" in part]
    assert len(tables) > 15
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize("name", SCRIPTS)
def test_pictures_show_a_finished_plan_and_nothing_of_none(name: str, tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    for records, drawn in ((whole(good, changed=adamw_breaks), True), ({}, False)):
        made = summary(name, records)
        path = tmp_path / "made.png"
        path.unlink(missing_ok=True)
        draw = SCRIPTS[name].draw
        shown = claims.picture(path, lambda f: draw(records, made, f), (11, 4))  # noqa: B023
        assert shown is drawn and path.exists() is drawn


# ---------------------------------------------------------------- Muon


ONE_BYTE = "one byte a moment"


def test_muon_is_held_against_torchs_in_each_storage() -> None:
    def loss(name: str) -> float:
        return 3.0 if name == "adamw-ours" else 2.8 if "fp4" in name else 2.5

    records = whole(loss, ("papers", "papers_muon", "papers_muon_110"))
    lines = summary("papers_muon", records)["verdicts"]
    first, others, alone, larger_ = lines
    assert ONE_BYTE in first["claim"] and first["verdict"] == verdicts.REPRODUCED
    assert others["verdict"] == verdicts.CONDITION
    assert others["why"] == "muon-momentum, muon-fp32; not muon-fp4, muon-fp4-momentum"
    assert alone["verdict"] == larger_["verdict"] == verdicts.REPRODUCED
    assert "110" in larger_["condition"] and "42" in first["condition"]
    sizes = summary("papers_muon", records)["rows"]
    rows = {r["arm"]: r for r in sizes["papers_muon"]["rows"]}
    assert rows["muon-fp4"]["lrs"] == [[rows["muon"]["lr"], rows["muon-fp4"]["held_out"]]]
    assert [r["arm"] for r in sizes["papers_muon_110"]["rows"]] == ["torch-muon", "muon"]

    worse = whole(lambda name: loss(name) + (0.03 if name == "muon" else 0), ("papers_muon",))
    first, *_ = summary("papers_muon", worse)["verdicts"]
    assert (first["verdict"], first["why"]) == (verdicts.CONDITION, "muon-e4m3; not muon")
    assert set(said("papers_muon", {}).values()) == {verdicts.NOT_RUN}


def test_muon_without_its_seeds_is_open() -> None:
    records = whole(claims_=("papers", "papers_muon"))
    records.pop(next(k for k in records if k.startswith("papers_muon/muon/") and k.endswith("/1")))
    first, *_ = summary("papers_muon", records)["verdicts"]
    assert first["verdict"] == verdicts.OPEN
