"""A page for every optimizer of the catalogue, and the list of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from signconv.errors import LoweringError, SignconvError
from signconv.ir.nodes import Program
from signconv.lower.storage import plan, without_widths
from signconv.passes.base import parse, registry
from signconv.pipeline import Build, build
from signconv.pipeline.catalogue import GENERATED, Entry
from signconv.prove.report import assemble
from tools.docs import algorithms
from tools.site import curves, paths

REPOSITORY = "https://github.com/signconv/signconv"
#: Papers whose docstring gives no arXiv number.
PAPERS = {
    "adagrad": "https://jmlr.org/papers/v12/duchi11a.html",
    "adamax": "https://arxiv.org/abs/1412.6980",
    "adamw": "https://arxiv.org/abs/1711.05101",
    "nadam": "https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
    "rmsprop": "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
    "rprop": "https://doi.org/10.1109/ICNN.1993.298623",
}
#: Passes that have an option without a default, as they are tried.
WITH_OPTIONS = {"init": ("init:to=zero", "init:to=first"), "soft": ("soft:p=3",)}


@cache
def built(entry: Entry) -> Build:
    return build(entry.spec, convert=entry.convert, state=entry.state, math=entry.math)


def stem(entry: Entry) -> str:
    """The name of its file in generated/, and of its page."""
    return built(entry).module.file_name.removesuffix(".py")


def index() -> str:
    """The list, with what tells them apart."""
    head = [
        "# Catalogue",
        "",
        f"The {len(GENERATED)} optimizers in `generated/`, ready to import; every one has a page "
        "with its algorithm, the bound on its step, its state, its path on two test functions and, "
        "where runs of it are recorded, a loss curve. [Algorithms](algorithms.md) has them in one "
        "table with the tests that guard them, [the language](dsl.md) says how to write another.",
        "",
        "| optimizer | what it is | bytes of state | bound on the ratio |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *map(_row, GENERATED)]) + "\n"


def _row(entry: Entry) -> str:
    made = built(entry)
    name = f"[{made.module.class_name}](catalogue/{stem(entry)}.md)"
    passes = "; ".join(f"with {x}" for x in made.program.history)
    about = _sentence(made.program) + (f", {passes}" if passes else "")
    size = sum(m["bytes"] for m in assemble_(entry)["built"]["moments"].values())
    return f"| {name} | {about} | {size:.2f} | {bound_of(entry)} |"


@cache
def bound_of(entry: Entry) -> str:
    return algorithms.bound(built(entry))


@cache
def assemble_(entry: Entry) -> dict[str, Any]:
    return assemble(built(entry))


def _sentence(p: Program) -> str:
    """The docstring's first sentence without its source."""
    first = " ".join(p.doc.split("\n\n")[0].split())
    return re.split(r" \(|\.$|\. ", first)[0]


def escaped(text: str) -> str:
    """Plain text, with ``code`` in it, as Markdown that shows it as it is."""
    parts = re.split(r"(``[^`]+``)", text)
    parts[::2] = [re.sub(r"([*_`\[\]\\])", r"\\\1", x).replace("<", "&lt;") for x in parts[::2]]
    return "".join(parts).replace("|", "&#124;")


def page(entry: Entry, runs: list[paths.Path_] | None) -> str:
    """The page of one optimizer, as Markdown."""
    made, report = built(entry), assemble_(entry)
    name, file = made.module.class_name, stem(entry)
    parts = [
        f"# {name}",
        escaped(inspect.cleandoc(made.program.doc)),
        _sources(made),
        f"```python\nfrom signconv.generated.{file} import {name}\n```",
        f"```console\n{made.command}\n```",
        "## Algorithm",
        f"$$\n{report['latex']}\n$$",
        *map(escaped, report["remarks"]),
        _hypers(report),
        "## Spec",
        f"```python\n{_spec(entry.spec)}\n```",
        f"[signconv/specs/{entry.spec}.py]({REPOSITORY}/blob/main/signconv/specs/{entry.spec}.py); "
        f"what is generated from it: [{file}.py]({REPOSITORY}/blob/main/generated/{file}.py).",
        "## Bound on a step",
        *_bound(entry, report),
        "## State",
        _state(made, report),
        "## Path on two test functions",
        *_paths(made, runs),
        "## Loss",
        *_loss(entry),
        "## Passes",
        _passes(entry),
    ]
    return "\n\n".join(x for x in parts if x) + "\n"


def _sources(made: Build) -> str:
    doc, spec = made.program.doc, made.spec
    numbers = re.findall(r"arXiv (\d{4}\.\d{4,5})", doc)
    links = [f"[arXiv {n}](https://arxiv.org/abs/{n})" for n in dict.fromkeys(numbers)]
    if spec in PAPERS:
        links.insert(0, f"[the paper]({PAPERS[spec]})")
    lines = [f"Source: {', '.join(links)}."] if links else ["Source: named above; not on arXiv."]
    for text in made.program.history:
        found = registry()[parse(text).name]
        source = re.sub(
            r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", found.source
        )
        lines.append(f"[{text}](../passes/{found.name}.md): {escaped(found.summary)} ({source}).")
    return "  \n".join(lines)


def _spec(spec: str) -> str:
    return inspect.getsource(import_module(f"signconv.specs.{spec}")).strip()


def _hypers(report: dict[str, Any]) -> str:
    rows = [
        f"| `{h['name']}` | {h['default']:g} | {escaped(h['range'])} |"
        for h in report["hyperparameters"]
    ]
    gone = [f"| `{h['name']}` | removed | {escaped(h['reason'])} |" for h in report["removed"]]
    return "\n".join(["| hyperparameter | default | range |", "|---|---|---|", *rows, *gone])


def _bound(entry: Entry, report: dict[str, Any]) -> Iterator[str]:
    yield f"abs(numerator/denominator): **{bound_of(entry)}**."
    claims = [x for group in report["claims"].values() for x in group]
    yield "\n".join(f"- {escaped(x)}" for x in claims)


def _state(made: Build, report: dict[str, Any]) -> str:
    p, states = made.program, report["state"]
    if not any(s["moments"] for s in states.values()):
        return "No moment is stored: 0 bytes of state a parameter."
    order = [x for x in ("fp32", "bf16", "fp8", "fp4") if x in states]
    lines = [
        "Bytes a parameter, scales included, where rows are multiples of 32:",
        f"| moment | {' | '.join(order)} |\n|---|{'---|' * len(order)}",
    ]
    for m in states["fp32"]["moments"]:
        moments = [states[s]["moments"][m] for s in order]
        cells = [f"{x['bytes']:.2f} {x['format']}" for x in moments]
        lines[-1] += f"\n| `{m}` | {' | '.join(cells)} |"
    cells = [f"{states[s]['bytes']:.2f}" for s in order]
    lines[-1] += f"\n| in all | {' | '.join(cells)} |"
    if "fp4" not in states:
        try:
            plan(without_widths(p), "fp4")
        except LoweringError as error:
            lines.append(f"Not on 4 bits: {escaped(error.message)} (`{error.code}`).")
    return "\n\n".join(lines)


def _paths(made: Build, runs: list[paths.Path_] | None) -> Iterator[str]:
    if runs is None:
        yield "No picture: the optimizer needs an input beside the gradient."
        return
    yield (
        f"The generated file, as it is, run on a CPU when this site was built: {paths.STEPS} steps "
        f"from seed 0 without weight decay, of {len(paths.RATES)} learning rates from "
        f"{paths.RATES[0]:g} to {paths.RATES[-1]:g} the one with the lowest mean of the last "
        f"{paths.LAST} values. Two parameters say how it moves, not how it trains."
    )
    name = made.module.class_name
    pictures = [paths.figure(f, r, name) for f, r in zip(paths.FUNCTIONS, runs)]
    yield f'<div class="figures">{"".join(pictures)}</div>'


def _loss(entry: Entry) -> Iterator[str]:
    made = built(entry)
    found = curves.recorded(made)
    if found is None and (row := curves.on_digits(entry.label)) is not None:
        yield f'<div class="figures">{curves.digits_figure(made.module.class_name, row)}</div>'
        lrs = [lr for lr, _ in row["lrs"]]
        end = ", an end of that range" if row["lr"] in (lrs[0], lrs[-1]) else ""
        tried = ", ".join(f"{lr:g}" for lr in lrs)
        yield (
            f"- lr={row['lr']:g}: {row['held_out'][-1][1]:.4f}, mean of {row['runs']} runs; the "
            f"best of lr {tried}, with another seed{end}.\n\nHeld-out loss of a convnet of 76,522 "
            "parameters on scikit-learn's digits (examples/results/gallery.py); dashed: AdamW on "
            "FP8 state, at its own best lr. It shows that and how it trains, and says little "
            "about which optimizer is best."
        )
        return
    if found is None:
        records = f"{REPOSITORY}/tree/main/docs/results"
        if others := curves.elsewhere(made):
            names = ", ".join(others)
            yield f"Its runs in {names} are of [other settings]({records}): no curve here."
        else:
            yield f"No training run of this optimizer with this storage is [recorded]({records})."
        return
    setting, shown = found
    page = (
        "[Papers](../papers.md)" if setting is curves.PAPERS else "[Results](../results.md#setting)"
    )
    yield f'<div class="figures">{curves.figure(made.module.class_name, setting, shown)}</div>'
    yield "\n".join(f"- {curves.how_chosen(c, made)}." for c in shown)
    yield (
        f"Held-out loss in nats per {setting.unit}; dashed: {setting.yardstick[1]}, at its own "
        f"best lr. What the runs are is in {page}."
    )


def _passes(entry: Entry) -> str:
    rows = ["| pass | applies | |", "|---|---|---|"]
    applied = [parse(x).name for x in built(entry).program.history]
    for name, made in registry().items():
        link = f"[{name}](../passes/{name}.md)"
        if name in applied:
            rows.append(f"| {link} | applied | {escaped(made.summary)} |")
            continue
        for request in WITH_OPTIONS.get(name, (name,)):
            link = f"[{request}](../passes/{name}.md)"
            asked = ",".join(filter(None, [entry.convert, request]))
            try:
                build(entry.spec, convert=asked, state=entry.state, math=entry.math)
            except SignconvError as error:
                code = f"[{error.code}](../errors.md#{error.code.lower()})"
                rows.append(f"| {link} | no | {escaped(error.message)} ({code}) |")
            else:
                rows.append(f"| {link} | yes | {escaped(made.summary)} |")
    return "\n".join(rows)


def pages() -> Iterator[tuple[Path, str]]:
    """Every generated page of the catalogue: where it goes, and its text."""
    yield Path("catalogue.md"), index()
    runs = paths.paths([stem(e) for e in GENERATED])
    for entry in GENERATED:
        yield Path("catalogue") / f"{stem(entry)}.md", page(entry, runs[stem(entry)])
