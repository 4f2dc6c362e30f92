"""``signconv show``: what an optimizer is and what can be proved of it, as text, LaTeX or JSON.

``assemble`` returns a dict of plain values with these keys, the same for every optimizer; the
renderings read nothing else.  A quantity that does not apply is None (JSON: null).

    name, spec, command, doc   class name, SPEC, the command that builds it, the spec's docstring
    algorithm, remarks         lines of the step; what a reader must know beside them
    latex                      the step and the bound as an align* block (amsmath)
    hyperparameters            [{name, default, range}]
    removed                    [{name, reason}]
    passes, notes              [{request, summary, source, provides}]; what the passes say they did
    link                       ratio, stosign, expected or sign
    state                      {fp4|fp8|bf16|fp32: {moments: {name: {format, bytes}}, bytes,
                               moved: {bf16|fp32: bytes per step with parameters of that type}}}
    built                      {state, moments}: what --state chose
    operations                 {arithmetic, other, passes, products}: per parameter and step, of the
                               fp32 math, and matrix products of matrix signs
    bound                      {status, value, formula, method, numerator_weights,
                               denominator_weights, condition, assumptions, always, reason, tied,
                               attained, early: {steps, t, value}, search, offset}
    claims                     {bound, update, unbiased, rounding}: lists of sentences
    fp8                        {largest, share, steps, elements}: measured; largest None: infinite
    rounding                   [{moment, format, use, exponent, single, gaussian}]
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from signconv.errors import LoweringError
from signconv.ir.describe import algorithm, remarks
from signconv.ir.nodes import Op, Program, Ref, references, walk
from signconv.lower.kernel_program import KernelProgram
from signconv.lower.storage import plan, widened, without_widths
from signconv.passes.base import parse, registry
from signconv.pipeline import Build
from signconv.prove.claims import (
    bound_claims,
    matrix_claims,
    noise_claims,
    rounding_claims,
    unbiased_claims,
    update_claims,
)
from signconv.prove.formulas import algorithm_latex, formula_latex, formula_text
from signconv.prove.proofs import EARLY, Bound, prove
from signconv.prove.ratios import fraction, stripped
from signconv.prove.rounding import shifts
from signconv.runtime.axes import bytes_of_kept
from signconv.runtime.formats import FORMATS
from signconv.runtime.polar import MOVED, PRODUCTS, split

WIDTH = 100
#: Operations that count as arithmetic; comparisons, selections, abs and sign count as other.
ARITHMETIC = frozenset({"add", "sub", "mul", "div", "sqrt", "cbrt", "newton_root", "real_power",
                        "ratio", "mean_ratio", "fma"})  # fmt: skip


def assemble(made: Build) -> dict[str, Any]:
    """Everything ``show`` knows of a build; deterministic, a few seconds at most."""
    p = made.program
    bound = prove(p)
    excess = _excess(made, bound)
    formats = _narrow(made)
    rounding = [asdict(x) for x in shifts(p, formats)]
    proved = _bound(p, bound)
    return {
        "name": made.module.class_name,
        "spec": made.spec,
        "command": made.command,
        "doc": " ".join(p.doc.split()),
        "algorithm": algorithm(p),
        "remarks": remarks(p),
        "latex": algorithm_latex(p, _bound_latex(bound)),
        "hyperparameters": [
            {"name": h.name, "default": h.default, "range": h.legal} for h in p.hypers
        ],
        "removed": [{"name": n, "reason": why} for n, why in p.removed],
        "passes": [_pass(text) for text in p.history],
        "notes": list(p.notes),
        "link": p.link,
        "state": {s: _state(p, made.kernel, s) for s in _storages(p)},
        "built": {
            "state": made.kernel.storage,
            "moments": {
                m.name: {"format": m.format, "bytes": FORMATS[m.format].bytes_per_element}
                for m in made.kernel.moments
            }
            | _of_blocks(made.kernel),
        },
        "operations": _operations(made.kernel),
        "bound": proved,
        "claims": {
            "bound": bound_claims(proved),
            "update": [*update_claims(p, bound, excess), *matrix_claims(p)],
            "unbiased": [*unbiased_claims(p, bound, excess), *noise_claims(p)],
            "rounding": rounding_claims(rounding),
            "storage": [
                f"{name} is {form} and not {made.kernel.storage}: {why} (docs/numerics.md)."
                for name, (form, why) in widened(p, made.kernel.storage).items()
            ],
        },
        "fp8": excess,
        "rounding": rounding,
    }


def _narrow(made: Build) -> dict[str, str]:
    """Formats as built where any is of 8 bits or fewer, else what FP8 would have."""
    built = {m.name: m.format for m in made.kernel.moments}
    if _rounded(made):
        return built
    return {m.name: m.format for m in plan(without_widths(made.program), "fp8")}


def _rounded(made: Build) -> bool:
    """Whether any moment is built with 8 bits or fewer and block scales."""
    return any(FORMATS[m.format].scaled for m in made.kernel.moments)


def _storages(p: Program) -> list[str]:
    """Storages to compare: 4 bits where any moment fits them."""
    try:
        plan(without_widths(p), "fp4")
    except LoweringError:
        return ["fp8", "bf16", "fp32"]
    return ["fp4", "fp8", "bf16", "fp32"] if p.moments else ["fp8", "bf16", "fp32"]


def _pass(text: str) -> dict[str, str]:
    found = registry()[parse(text).name]
    return {
        "request": text,
        "summary": found.summary,
        "source": found.source,
        "provides": found.provides,
    }


def _state(p: Program, kernel: KernelProgram, state: str) -> dict[str, Any]:
    """Bytes per parameter where rows are multiples of 32, and bytes a step reads and writes."""
    moments: dict[str, dict[str, Any]] = {
        m.name: {"format": m.format, "bytes": FORMATS[m.format].bytes_per_element}
        for m in plan(without_widths(p), state)
    } | _of_blocks(kernel)
    sizes = {name: float(m["bytes"]) for name, m in moments.items()}
    size = sum(sizes.values())
    moved = {name: bytes_moved(kernel, width, sizes) for name, width in (("bf16", 2), ("fp32", 4))}
    return {"moments": moments, "bytes": size, "moved": moved}


def _of_blocks(kernel: KernelProgram) -> dict[str, dict[str, Any]]:
    """States that are one fp32 number a block; those of rows and more count for nothing."""
    number = {"format": "fp32", "bytes": bytes_of_kept("block")}
    return {k.name: number for k in kernel.kept if k.over == "block"}


def bytes_moved(kernel: KernelProgram, width: int, sizes: Mapping[str, float]) -> float:
    """Bytes per parameter that a step reads and writes.

    width: bytes of a parameter and of its gradient; sizes: bytes of each moment per parameter.
    Parameter and moments are read and written, the gradient is read; each pass before the step
    reads what it needs of them once more; of matrix signs
    what is moved beside their products.
    """
    moved = 3 * width + 2 * sum(sizes.values())
    for s in kernel.sums:
        param, grad, moments = kernel.read_by(s)
        moved += (param + grad) * width + sum(sizes[name] for name in moments)
    return moved + MOVED * sum(r.kind == "msign" for r in kernel.reductions)


def _operations(kernel: KernelProgram) -> dict[str, int]:
    """Operations per parameter of the lowered math; storage, with what is done once for a block's
    scale, and random bits are not counted."""
    statements = [s.expr for s in kernel.statements]
    scales = {m.scale_name for m in kernel.moments if m.apart}
    nodes = [
        n.fn
        for e in statements
        for n in walk(e)
        if isinstance(n, Op) and not any(isinstance(a, Ref) and a.name in scales for a in n.args)
    ]
    arithmetic = sum(fn in ARITHMETIC for fn in nodes)
    return {
        "arithmetic": arithmetic,
        "other": len(nodes) - arithmetic,
        "passes": kernel.passes,
        "products": sum(PRODUCTS * split(r.how)[1] for r in kernel.reductions if r.kind == "msign"),
    }


def _number(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def _bound(p: Program, b: Bound) -> dict[str, Any]:
    weights = b.series or (None, None)
    early = {"steps": EARLY, "t": b.early[0], "value": b.early[1]} if b.early else None
    return {
        "status": b.status,
        "value": _number(b.value),
        "formula": None if b.closed is None else formula_text(b.closed),
        "method": b.method,
        "numerator_weights": weights[0],
        "denominator_weights": weights[1],
        "condition": list(b.condition),
        "assumptions": list(b.assumptions),
        "always": b.always,
        "reason": b.always_reason or b.reason,
        "tied": list(b.tied),
        "attained": _number(b.attained),
        "early": early,
        "search": _number(b.search),
        "offset": _offset(p),
    }


def _offset(p: Program) -> list[str]:
    """Hyperparameters added to the denominator, which the bound leaves out."""
    made: set[str] = set()
    for e in fraction(p)[1]:
        made |= references(e, "hyper") - references(stripped(p, e), "hyper")
    return sorted(made)


def _bound_latex(b: Bound) -> str:
    ratio = r"\left|\text{numerator}/\text{denominator}\right|"
    if b.status != "proved":
        return ""
    if b.always:
        return rf"{ratio} \le 1 \quad\text{{at every step}}"
    formula = "" if b.closed is None else f"{formula_latex(b.closed)} = "
    return rf"\sup_{{t \to \infty}} {ratio} = {formula}{b.value:.6g}\ldots"


def _excess(made: Build, bound: Bound) -> dict[str, Any] | None:
    """What FP8 storage does to a bound of 1 that holds in exact arithmetic, by running it."""
    p = made.program
    if not bound.at_most_one or bound.by_construction or p.denominator is None or not p.moments:
        return None
    from signconv.prove.excess import measure
    from signconv.verification.differential import build_like

    try:
        x = asdict(measure(made if _rounded(made) else build_like(made, "fp8")))
    except LoweringError:
        return None
    return {**x, "largest": _number(x["largest"])}


# ---------------------------------------------------------------- renderings


def as_json(report: dict[str, Any]) -> str:
    """The dict as JSON, keys in the order of this module's docstring."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)


def as_latex(report: dict[str, Any]) -> str:
    """The step and its bound as an align* block, with what is proved as comments."""
    lines = [f"% {report['name']}: {report['command']}; needs amsmath"]
    for sentence in [x for group in report["claims"].values() for x in group]:
        lines += textwrap.wrap(sentence, WIDTH, initial_indent="% ", subsequent_indent="%   ")
    return "\n".join([*lines, report["latex"]])


def as_text(report: dict[str, Any], width: int = WIDTH) -> str:
    """The report for a terminal of ``width`` columns."""
    r = report

    def wrapped(text: str, indent: str = "", hanging: str | None = None) -> list[str]:
        return textwrap.wrap(
            text, width, initial_indent=indent,
            subsequent_indent=f"{indent}    " if hanging is None else hanging,
            break_on_hyphens=False, break_long_words=False,
        )  # fmt: skip

    lines = [*wrapped(f"{r['name']}: {r['doc']}"), r["command"], ""]
    for x in r["algorithm"]:
        lines += wrapped(x, "    ")
    for x in ["", *r["remarks"]]:
        lines += wrapped(x) or [""]
    lines += ["", "Hyperparameters"]
    for h in r["hyperparameters"]:
        lines += wrapped(f"{h['name']} = {h['default']:g}   ({h['range']})", "    ")
    for x in r["removed"]:
        lines += wrapped(f"{x['name']}: removed; {x['reason']}", "    ")
    lines += ["", *wrapped(f"Passes: {', '.join(x['request'] for x in r['passes']) or 'none'}")]
    for x in r["passes"]:
        words = f"{x['request']}: {x['summary']} ({x['source']}). Provides {x['provides']}."
        lines += wrapped(words, "    ")
    lines += ["", *(_table(r) if width >= WIDTH else _list(r, wrapped)), ""]
    lines += wrapped("Operations per parameter and step, storage and random bits apart")
    ops = r["operations"]
    words = f"{ops['arithmetic']} arithmetic, {ops['other']} others (abs, max, …)"
    if ops["passes"] > 1:
        words += f"; {ops['passes']} passes over the tensor, for what is found of all of it"
    if ops["products"]:
        words += f"; {ops['products']} matrix products"
    lines += [*wrapped(words, "    "), "", "What is proved, and what is measured"]
    for sentence in [x for group in r["claims"].values() for x in group]:
        lines += wrapped(sentence, "  - ", "    ")
    return "\n".join(lines)


def _table(r: dict[str, Any]) -> list[str]:
    """Bytes of state, a row for each moment and a column for each storage."""
    states = list(r["state"])
    rows = [("State, bytes per parameter (rows of whole 32s)", *states)]
    for name in next(iter(r["state"].values()))["moments"]:
        cells = [r["state"][s]["moments"][name] for s in states]
        rows.append((f"    {name}", *(f"{c['format']} {c['bytes']:.3f}" for c in cells)))
    rows.append(("    in all", *(f"{r['state'][s]['bytes']:.3f}" for s in states)))
    for dtype in ("bf16", "fp32"):
        cells = [f"{r['state'][s]['moved'][dtype]:.3f}" for s in states]
        rows.append((f"    read and written per step, {dtype} parameters", *cells))
    width = max(len(row[0]) for row in rows) + 2
    room = min(17, (WIDTH - width) // len(states))
    lines = [row[0].ljust(width) + "".join(c.rjust(room) for c in row[1:]) for row in rows]
    return [*lines, f"    {_built(r)}"]


def _list(r: dict[str, Any], wrapped: Callable[[str, str], list[str]]) -> list[str]:
    """The same, storage after storage, for a terminal that the table does not fit."""
    lines = wrapped("State, bytes per parameter (rows of whole 32s)", "")
    for name, s in r["state"].items():
        cells = [f"{m} {c['format']} {c['bytes']:.3f}" for m, c in s["moments"].items()]
        lines += wrapped(
            f"{name}: {s['bytes']:.3f} in all{''.join(f', {c}' for c in cells)}", "    "
        )
        moved = " and ".join(f"{n:.3f} ({dtype} parameters)" for dtype, n in s["moved"].items())
        lines += wrapped(f"read and written per step: {moved}", "        ")
    return [*lines, *wrapped(_built(r), "    ")]


def _built(r: dict[str, Any]) -> str:
    total = sum(m["bytes"] for m in r["built"]["moments"].values())
    return f"{total:.3f}  in all as built here, --state {r['built']['state']}"
