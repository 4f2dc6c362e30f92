"""``signconv show --html``: one optimizer as one page that asks nothing of any network.

The facts are those of ``report.assemble``; beside them the spec as written, what each pass changed,
and the lowered program.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from signconv import __version__
from signconv.ir.describe import algorithm
from signconv.ir.nodes import Program
from signconv.ir.show import text
from signconv.lower.identity import program_hash
from signconv.lower.kernel_program import KernelProgram, Reduction, Statement
from signconv.pipeline import Build, apply_passes, requests_of
from signconv.prove import mathml
from signconv.prove.report import assemble
from signconv.render.environment import environment
from signconv.render.words import storage_lines, summary
from signconv.runtime.axes import ELEMENTS, NOTATION

#: What stands in every such page, by which the next one knows that it may replace it.
MARK = '<meta name="generator" content="signconv show --html">'


def as_html(made: Build) -> str:
    """The page of a build; raises nothing that building it has not raised."""
    report = assemble(made)
    moving = {m.name for m in made.program.moments}
    formula = report["bound"]["formula"]
    return (
        environment()
        .get_template("page/show.html.j2")
        .render(
            r=report,
            mark=MARK,
            version=__version__,
            hash=program_hash(made.kernel),
            summary=summary(made.kernel),
            math=[mathml.statement(line, moving) for line in report["algorithm"]],
            bound=None if formula is None else mathml.formula(formula),
            source=source_of(made.program),
            changes=changes(made),
            lowered=list(lowered(made.kernel)),
            storage=storage_lines(made.kernel),
        )
    )


def source_of(p: Program) -> str:
    """The class as its file has it; empty where there is no file, or it has changed."""
    if p.origin is None:
        return ""
    try:
        source = Path(p.origin.file).read_text(encoding="utf-8")
        found = ast.parse(source)
    except (OSError, ValueError, SyntaxError):
        return ""
    for node in ast.walk(found):
        if isinstance(node, ast.ClassDef) and node.name == p.name:
            return ast.get_source_segment(source, node) or ""
    return ""


def changes(made: Build) -> list[dict[str, Any]]:
    """What each pass did, in the order in which they ran: lines of the algorithm that it took out
    and put in, the same of hyperparameters and moments, and what it says itself."""
    found = []
    before = made.base
    for request in made.program.history:
        after = apply_passes(before, requests_of(request))
        found.append(
            {
                "request": request,
                "algorithm": _changed(algorithm(before), algorithm(after)),
                "hyperparameters": _changed(_hypers(before), _hypers(after)),
                "state": _changed(
                    [m.name for m in before.moments], [m.name for m in after.moments]
                ),
                "notes": [x for x in after.notes if x not in before.notes],
            }
        )
        before = after
    return found


def _hypers(p: Program) -> list[str]:
    return [f"{h.name} = {h.default:g}" for h in p.hypers]


def _changed(before: list[str], after: list[str]) -> list[tuple[str, str]]:
    """What went, then what is there."""
    gone = [("−", x) for x in before if x not in after]
    return gone + [("+", x) for x in after if x not in before]


def lowered(k: KernelProgram) -> Iterator[tuple[str, list[str]]]:
    """The kernel program in the order in which it runs: titles, and statements as text."""
    if k.scalars:
        yield "once per step, in float64", _statements(k.scalars)
    for s in k.sums:
        of = "of every tensor" if s.source == ELEMENTS else "of what that left"
        yield f"a pass {of}", [*_statements(s.math), *map(_reduction, s.reductions)]
    for d in k.derived:
        yield f"made of those{_over(d.over)}", _statements(d.math)
    if k.totals is not None:
        of = "every tensor" if k.totals.over == "all" else "every tensor of the group"
        sums = k.totals.sums
        yield f"sums over {of}", [*_statements(sums.math), *map(_reduction, sums.reductions)]
    yield f"every element, in {k.precision}", _statements(k.math)
    if k.evaluation is not None:
        e = k.evaluation
        last = f"evaluated with: {text(e.result)}"
        yield "between steps", [*_statements((*e.scalars, *e.math)), last]


def _statements(statements: Iterable[Statement]) -> list[str]:
    lines = []
    for s in statements:
        formula = text(s.expr)
        lines += [f"# {s.comment}"] if s.comment not in ("", formula) else []
        lines.append(f"{s.target} = {formula}")
    return lines


def _reduction(r: Reduction) -> str:
    return f"{r.name} = {r.kind}({text(r.operand)}{_over(r.over)})"


def _over(over: str) -> str:
    return f", axis={NOTATION[over]}" if over in NOTATION and over else ""
