"""The plan of the runs that try the two papers' claims in a setting like theirs.

    python examples/results/papers.py        # the stages, their runs and GPU minutes, as a table

A stage is a question, the arms that answer it, and which runs of each; stages stand in the order
of what they settle.  ``runs`` yields what can start now, as plan.py does, and docs/papers.md is
written from the same table (page.py), so that page and runs cannot differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from optimizers import CHOICES, rate
from runs import Run
from search import WIDEST, Records, search

#: What each claim of this file trains (gpt.MODELS).
MODELS = {
    "papers": "gpt42",
    "papers_s3": "gpt42",
    "papers_settings": "gpt42",
    "papers_finetune": "gpt42",
    "papers_muon": "gpt42",
    "papers_matmul": "gpt42_fp8",
    "papers_110": "gpt110",
    "papers_muon_110": "gpt110",
    "papers_336": "gpt336",
}
TOKENS = 32_768_000  # of a run: 2,000 steps
FINETUNE_TOKENS = 5_000_000
MUON_110_TOKENS = 16_384_000  # 1,000 steps
#: Claims whose records are their own, sweeps included; others of one model share theirs.
APART = ("papers_finetune", "papers_muon", "papers_muon_110")
SEEDS = (1, 2, 3)
#: Tokens a second on one H200, reckoned; what runs say is in their records.
RATE = {"gpt42": 1_050_000, "gpt42_fp8": 900_000, "gpt110": 380_000, "gpt336": 140_000}
OVERHEAD = 5.0  # seconds of a run that are not training
CHECKPOINT = "papers_base.pt"
BASE = "adamw-ours"  # what fine-tuning starts from, and whose lr its forms are run at
EVALUATIONS = 30


@dataclass(frozen=True)
class Stage:
    """One question and the runs that answer it.

    kind: ``middle``, the first lr of a sweep; ``sweep``, three lrs and further ones while the best
    is at an edge, seed 1; ``seeds``, the best lr with the other seeds; ``above``, ``factors``
    places of the grid above the best.  All but the first two wait for the sweep of an arm, or of
    the arm that ``like`` names for it.
    """

    number: int
    question: str
    claim: str
    kind: str
    arms: tuple[str, ...]
    drop: str  # what may be dropped of it, in words
    seeds: tuple[int, ...] = (1,)
    factors: tuple[int, ...] = (0,)
    like: Mapping[str, str] = field(default_factory=dict)
    tokens: int = TOKENS

    @property
    def model(self) -> str:
        """What it trains, a key of gpt.MODELS."""
        return MODELS[self.claim]


@dataclass(frozen=True)
class Part:
    """How much of the plan: tests take few arms and few tokens."""

    tokens: int | None = None  # instead of each stage's
    finetune: int | None = None
    arms: tuple[str, ...] | None = None  # these alone
    first_lrs: int = 3
    seeds: tuple[int, ...] = SEEDS


ALL = Part()


def _in(regime: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{name}-{regime}" for name in names)


FOUR = ("stosignsgd", "signum", "adamw", "lion")
OTHERS = SEEDS[1:]
S3_ARMS = ("s3-ours", *_in("ours", "nadam", "adan", "adamw-expected"))
CONVERTED = _in("ours", "adamw-stosign", "adamax-stosign", "rmsprop-stosign")
SETTINGS = (
    *_in("ours", "stosignsgd-first", "stosignsgd-paper", "stosignsgd-v2"),
    "ie-stosignsgd-ours",
)
GRID = tuple(f"s3-p{p}-{beta:g}" for p in (1, 2, 3, 5) for beta in (0.9, 0.95, 0.98))
TUNED = _in("ours", "s3gd", "s3gd-raw", "adamw", "signum", "signsgd", "stosignsgd")
MUON = ("torch-muon", "muon", "muon-e4m3")
MUON_ELSE = ("muon-momentum", "muon-fp4", "muon-fp32", "muon-fp4-momentum")
ALONG = {
    "adamw-fp32-ours": BASE, "adamw-noclip-ours": BASE, "adamw-decay-ours": BASE,
    "adamw-fp4-ours": BASE, "adamw-golden-fp4-ours": BASE, "s3-fp32-ours": "s3-ours",
    "adamw-stosign-ours": BASE, "adamax-stosign-ours": BASE, "rmsprop-stosign-ours": BASE,
    **{name: "s3-ours" for name in GRID},
}  # fmt: skip

STAGES = (
    Stage(1, "What raw E4M3 does to each state: shares of zeros by layer, sizes of m, the sign's "
          "noise (their Table 12, Figures 3 and 4)", "papers", "middle", _in("theirs", *FOUR),
          "nothing: it says which of the later stages mean anything"),
    Stage(2, "The same with FP8 state of block scales", "papers", "middle", _in("ours", *FOUR),
          "nothing"),
    Stage(3, "Tokens to equal loss in our regime, each at its best lr", "papers", "sweep",
          _in("ours", *FOUR), "nothing: it is the headline"),
    Stage(4, "Tokens to equal loss in their regime", "papers", "sweep", _in("theirs", *FOUR),
          "Lion and Signum where stage 1 shows m to be all zeros: they are SignSGD then"),
    Stage(5, "The same where gradients lie within E4M3's range (64 times as large)", "papers",
          "sweep", _in("theirs64", "stosignsgd", "signum", "adamw", "lion"), "Lion"),
    Stage(6, "S3 against clipped AdamW, NAdam, Adan and Lion, each at its best lr (their Table "
          "and Figure 11)", "papers_s3", "sweep", S3_ARMS, "NAdam"),
    Stage(7, "Spread of the headline in our regime", "papers", "seeds", _in("ours", *FOUR),
          "nothing", OTHERS),
    Stage(8, "Spread of S3's lead", "papers_s3", "seeds", S3_ARMS[:3], "NAdam", OTHERS),
    Stage(9, "Spread in their regime", "papers", "seeds", _in("theirs", *FOUR),
          "what stage 4 dropped", OTHERS),
    Stage(10, "Spread in their regime with gradients 64 times as large", "papers", "seeds",
          _in("theirs64", *FOUR), "Lion", OTHERS),
    Stage(11, "Spikes at 3 and 10 times each one's best lr, clipped but for S3; updates clipped to "
          "±1 (their Figures 10 and 11)", "papers_s3", "above",
          (*S3_ARMS, *_in("ours", "adamw", "lion")), "NAdam; factor 3 where sweeps have it",
          factors=(1, 2)),
    Stage(12, "Their own settings of StoSignSGD, and what m1 = g1 costs: G never forgets; v2, a "
          "reconstruction; IE-StoSignSGD", "papers_settings", "sweep", SETTINGS, "v2"),
    Stage(13, "StoSignSGD as its paper writes it, in its own regime", "papers_settings", "sweep",
          _in("theirs", "stosignsgd-paper", "stosignsgd-v2"), "v2"),
    Stage(14, "What clipping, FP8 state and the decay of the sources change, at 1 and 10 times "
          "the lr", "papers_settings", "above",
          _in("ours", "adamw-noclip", "adamw-fp32", "s3-fp32", "adamw-decay"), "the decay",
          factors=(0, 2), like=ALONG),
    Stage(15, "Noise of converted optimizers (their Figure 4)", "papers_settings", "above",
          CONVERTED, "RMSprop", like=ALONG),
    Stage(16, "S3GD in fine-tuning, against clipped Adam and the sign methods", "papers_finetune",
          "sweep", TUNED, "SignSGD", tokens=FINETUNE_TOKENS),
    Stage(17, "Spread in fine-tuning", "papers_finetune", "seeds", TUNED, "SignSGD", OTHERS,
          tokens=FINETUNE_TOKENS),
    Stage(18, "Does it hold at 110 million parameters, at the best lrs of 42 million?",
          "papers_110", "above",
          (*_in("ours", *FOUR[:3]), "s3-ours", *_in("theirs", *FOUR[:3])), "their regime"),
    Stage(19, "S3's order and beta (their Figure 9), at S3's best lr", "papers_settings", "above",
          GRID, "p = 5, beta = 0.98", like=ALONG),
    Stage(20, "Matrix products in FP8 as well, at the best lrs without them", "papers_matmul",
          "above", (*_in("theirs", *FOUR[:3]), *_in("ours", *FOUR[:3])), "our regime"),
    Stage(21, "Bigger and longer once: loss against tokens and seconds, memory", "papers_336",
          "above", _in("ours", "adamw-fp32", "adamw-fp4", "adamw-golden-fp4", "stosignsgd", "s3"),
          "nothing of it: it takes one card for 20 minutes", like=ALONG),
    Stage(22, "Muon of the blocks' matrices beside AdamW: torch's own, and ours with one byte of "
          "momentum, whole numbers and E4M3, each at its best lr", "papers_muon", "sweep", MUON,
          "nothing"),
    Stage(23, "Spread of these", "papers_muon", "seeds", MUON, "nothing", OTHERS),
    Stage(24, "32 and 4 bits of both rules, and 8 and 4 of momentum alone, at the lr that is "
          "best on whole numbers", "papers_muon", "above", MUON_ELSE, "fp32, and 4 bits", SEEDS,
          like=dict.fromkeys(MUON_ELSE, MUON[1])),
    Stage(25, "Muon at 110 million parameters, each at its own best lr", "papers_muon_110", "sweep",
          MUON[:2], "nothing", tokens=MUON_110_TOKENS),
    Stage(26, "Spread of both", "papers_muon_110", "seeds", MUON[:2], "nothing", OTHERS,
          tokens=MUON_110_TOKENS),
    Stage(27, "Spread of StoSignSGD's settings", "papers_settings", "seeds",
          (*SETTINGS, *_in("theirs", "stosignsgd-paper", "stosignsgd-v2")), "v2", OTHERS),
    Stage(28, "Spread of what clipping, FP8 state and decay change", "papers_settings", "above",
          _in("ours", "adamw-noclip", "adamw-fp32", "s3-fp32", "adamw-decay"), "10 times the lr",
          OTHERS, factors=(0, 2), like=ALONG),
    Stage(29, "Spread of converted optimizers", "papers_settings", "above", CONVERTED, "RMSprop",
          OTHERS, like=ALONG),
)  # fmt: skip

# ---------------------------------------------------------------- runs


def tokens_of(stage: Stage, part: Part) -> int:
    """How long a run of the stage is."""
    return (part.finetune if stage.tokens == FINETUNE_TOKENS else part.tokens) or stage.tokens


def make(claim: str, name: str, lr: float, seed: int, tokens: int) -> Run:
    """One run; those of one model and length share their ids among the stages."""
    kind = "papers" if MODELS[claim] == "gpt42" and claim not in APART else claim
    if claim == "papers_finetune":
        lr = float(f"{lr / 10:.1g}")  # a decade below the grid
        return Run(
            f"{claim}/{name}/{lr:g}/{seed}", claim, name, lr, tokens, seed, "headers",
            start=CHECKPOINT,
        )  # fmt: skip
    id_ = f"{kind}/{name}/{lr:g}/{seed}"
    return Run(id_, kind, name, lr, tokens, seed, evaluations=EVALUATIONS, detail=seed == SEEDS[0])


def sweep(
    done: Records, name: str, part: Part, claim: str = "papers", tokens: int = 0
) -> tuple[list[Run], float | None]:
    """What an arm's sweep still misses, and its best lr of the grid once nothing is missing."""
    length = tokens or part.tokens or TOKENS
    return search(
        done, CHOICES[name].middle, part.first_lrs, lambda lr: make(claim, name, lr, 1, length)
    )


def at(done: Records, stage: Stage, name: str, part: Part) -> int | None:
    """Index on the grid of an arm's best lr, or of the arm's that it is like; None before its
    sweep is complete."""
    claim, tokens = "papers", 0
    if stage.claim in APART:
        claim, tokens = stage.claim, tokens_of(stage, part)
    _, lr = sweep(done, stage.like.get(name, name), part, claim, tokens)
    return None if lr is None else next(i for i in range(-30, 10) if rate(i) == lr)


def wanted(done: Records, stage: Stage, part: Part) -> Iterator[Run]:
    """The runs of one stage that are known by now, done or not."""
    tokens = tokens_of(stage, part)
    names = [n for n in stage.arms if part.arms is None or n in part.arms]
    seeds = [s for s in stage.seeds if s in part.seeds]
    if stage.kind in ("middle", "sweep"):
        for name in names:
            middle = make(stage.claim, name, rate(CHOICES[name].middle), 1, tokens)
            yield middle
            if stage.kind == "sweep":
                yield from sweep(done, name, part, stage.claim, tokens)[0]
        return
    for seed in seeds:
        for name in names:
            best = at(done, stage, name, part)
            for factor in stage.factors if best is not None else ():
                assert best is not None
                yield make(stage.claim, name, rate(best + factor), seed, tokens)


def base(done: Records, part: Part) -> Iterator[Run]:
    """The run that writes the checkpoint of fine-tuning, again in every call: weights are not
    kept."""
    _, lr = sweep(done, BASE, part)
    if lr is not None:
        again = sum(key.startswith("papers_base/") for key in done)
        run = make("papers", BASE, lr, 1, part.tokens or TOKENS)
        changed = {"id": f"papers_base/{again}", "save": CHECKPOINT, "detail": False}
        yield Run(**{**vars(run), **changed})


def runs(
    done: Records, have: Collection[str], claims: Collection[str], part: Part = ALL
) -> Iterator[Run]:
    """Every run of the wanted claims, the most valuable first; what waits for a sweep comes
    with a later call."""
    for stage in STAGES:
        if stage.claim not in claims:
            continue
        if stage.claim == "papers_finetune":
            missing = [run for run in wanted(done, stage, part) if run.id not in done]
            if CHECKPOINT in have:
                yield from missing
            elif missing:
                yield from base(done, part)
        else:
            yield from wanted(done, stage, part)


# ---------------------------------------------------------------- the table


def seconds(stage: Stage) -> float:
    """Of one run of the stage on one H200, as it is reckoned."""
    return OVERHEAD + tokens_of(stage, ALL) / RATE[stage.model]


def reckoned(stages: Collection[Stage] = STAGES) -> list[tuple[Stage, int, int]]:
    """Each stage with the runs that it adds to those before it, at least and at most.

    At least: every sweep has its best at the middle; at most: every sweep goes to WIDEST.
    """
    seen: set[tuple[str, str, int, int]] = set()  # model, arm, place beside the best, seed
    made = []
    for stage in stages:
        own, widest = 0, 0
        model = "tuned" if stage.claim == "papers_finetune" else stage.model
        for name, seed in ((n, s) for n in stage.arms for s in stage.seeds):
            places = {"middle": (0,), "sweep": (-1, 0, 1)}.get(stage.kind, stage.factors)
            new = {(model, name, place, seed) for place in places} - seen
            seen |= new
            own += len(new)
            widest += len(new) + (WIDEST - 3 if stage.kind == "sweep" else 0)
        made.append((stage, own, widest))
    return made


def main() -> None:
    """The table as text."""
    total = [0.0, 0.0]
    for stage, least, most in reckoned():
        minutes = [n * seconds(stage) / 60 for n in (least, most)]
        total = [a + b for a, b in zip(total, minutes)]
        print(f"{stage.number:3} {stage.claim:16} {least:3}-{most:3} runs {minutes[0]:5.1f}-"
              f"{minutes[1]:5.1f} min  {stage.question}")  # fmt: skip
    print(f"together {total[0]:.0f} to {total[1]:.0f} minutes of one H200")


def arms() -> set[str]:
    """Every arm of the plan."""
    return set(chain.from_iterable(stage.arms for stage in STAGES))


if __name__ == "__main__":
    main()
