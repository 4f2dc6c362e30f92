"""From a KernelProgram to the text of a module: the templates' context, and the result parsed."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

from signconv.errors import BuildError
from signconv.ir.nodes import Expr, Op, Ref, norm_scope, walk
from signconv.ir.show import Infix
from signconv.lower.identity import former, other_noises, program_hash
from signconv.lower.kernel_program import (
    GRADIENT_NORM,
    Derived,
    Evaluation,
    Function,
    KernelProgram,
    Reduction,
    Stage,
    Statement,
    Sums,
    Totals,
    local_name,
)
from signconv.render import layout, signature, words
from signconv.render.environment import environment
from signconv.render.printers import (
    PythonScalarPrinter,
    TorchFunctionPrinter,
    TorchPrinter,
    TritonFunctionPrinter,
    TritonPrinter,
    TritonScalarPrinter,
    picks_numbers,
    reads_real_t,
)
from signconv.runtime.axes import ELEMENTS, NOTATION


@dataclass(frozen=True)
class Module:
    """A generated module: what it is called and its text."""

    class_name: str
    file_name: str
    source: str


def render(k: KernelProgram, class_name: str, file_name: str, spec: str, command: str) -> Module:
    """Fill the templates; the result is parsed before it is returned (BuildError otherwise)."""
    p = k.program
    moments = [m.name for m in k.moments]
    states = [name for name, _ in k.scalar_states]
    constructor = signature.constructor(p)
    betas, lr = signature.betas_of(p), signature.lr_of(p)
    scope = norm_scope(p)
    triton, torch = TritonPrinter(), TorchPrinter()
    scalars = [*k.outputs, *k.reads]
    math = _read(s.expr for s in k.math)
    context = {
        "summary": words.summary(k),
        "doc": words.wrapped(p.doc),
        "box": words.box(p),
        "notes": words.notes(k),
        "command": words.escaped(command),
        "passes": ", ".join(p.history) or "none",
        "hash": program_hash(k),
        "scalars": [
            {
                "python": _line(4, s, PythonScalarPrinter()),
                "triton": _line(4, s, TritonScalarPrinter()),
            }
            for s in k.scalars
        ],
        "functions": [_function_lines(f) for f in k.functions],
        "math": [{"triton": _line(4, s, triton), "torch": _line(4, s, torch)} for s in k.math],
        "stages": [_stage(k, i, stage) for i, stage in enumerate(k.stages)],
        "sums": bool(k.sums),
        "derives": bool(k.derived),
        "kept": [
            f'Kept("{m.name}", "{m.over}"' + (f", {m.init!r})" if m.init else ")") for m in k.kept
        ],
        "shapes": signature.tuple_literal(k.shapes),
        "reads": signature.tuple_literal(k.reads),
        "unpack_hypers": layout.unpacked(
            [*(h.name for h in p.hypers), *([GRADIENT_NORM] if scope else []), *k.inputs], "hypers"
        ),
        "unpack_states": layout.unpacked([f"{n}_prev" for n in states], "states"),
        "unpack_moments": _unpack_moments(k, math),
        "unpack_scalars": layout.unpacked(_named(scalars, math), "scalars"),
        "results": layout.pair(k.outputs, states),
        "new_moments": layout.tuple_of(moments),
        "class_name": class_name,
        "spec_literal": words.literal(spec),
        "passes_tuple": signature.tuple_literal(p.history),
        "storage": k.storage,
        "precision": k.precision,
        "noise": p.noise if k.noise else "",
        "decay": p.decay.kind if p.decay is not None else "",
        "norm": scope,
        "evaluation": k.evaluation and _evaluation(k, k.evaluation),
        "totals": k.totals and _totals(k, k.totals),
        "shared": signature.tuple_literal(k.shared),
        "outputs": k.outputs,
        "words": k.words,
        "moments": k.moments,
        "scalar_states": signature.states_literal(k.scalar_states),
        "former": former(k),
        "other_noises": other_noises(k),
        "floors": signature.tuple_literal(k.floors),
        "extras": signature.extra_slots(p),
        "step_doc": signature.step_doc(p),
        "hyper_slots": [signature.hyper_slot(h, betas) for h in p.hypers],
        "moment_slots": signature.moment_slots(k.moments, p),
        "constructor": [a for a in constructor if a["name"] != "lr"],
        "lr_doc": f"learning rate, {lr.legal}; a float or a one-element tensor.",
        "lr_default": repr(lr.default),
        "removed": [(n, words.string_lines(r)) for n, r in p.removed],
        "uses_torch": k.uses(torch.functions_of("torch"))
        or k.uses_evaluating(torch.functions_of("torch"))
        or k.uses_inside(TorchFunctionPrinter().functions_of("torch")),
        "uses_dev": k.uses(triton.functions_of("dev"))
        or k.uses_inside(TritonFunctionPrinter().functions_of("dev"))
        or k.uses_scalar(TritonScalarPrinter().functions_of("dev")),
        "uses_ref": any(
            picks_numbers(n) for e in k.elementwise for n in walk(e) if isinstance(n, Op)
        )
        or k.uses(torch.functions_of("ref"))
        or k.uses_evaluating(torch.functions_of("ref"), PythonScalarPrinter().functions_of("ref"))
        or k.uses_inside(TorchFunctionPrinter().functions_of("ref"))
        or k.uses_scalar(PythonScalarPrinter().functions_of("ref")),
        "uses_real_t": any(reads_real_t(s.expr) for s in k.scalars),
    }
    source = environment().get_template("module.py.j2").render(context)
    source = layout.fitted(source)
    try:
        compile(source, file_name, "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise BuildError(
            "SC390", f"{file_name} did not come out as valid Python: {error}"
        ) from error
    _free(class_name, source)
    return Module(class_name, file_name, source)


def _stage(k: KernelProgram, number: int, stage: Stage) -> dict[str, object]:
    """The functions of a stage and what the program says of them."""
    last = f"_{number + 1}" if len(k.stages) > 1 else ""
    sums = [_sums(k, x, f"_summands{last}{_of(x.source)}") for x in stage.sums]
    derived = [_derived(k, x, f"_derived{last}{_of(x.over) or '_tensor'}") for x in stage.derived]
    return {"sums": sums, "derived": derived}


def _of(place: str) -> str:
    return "" if place in ("", ELEMENTS) else f"_{place}"


def _sums(k: KernelProgram, x: Sums, name: str) -> dict[str, object]:
    """A pass over what there is of ``x.source``."""
    triton, torch = TritonPrinter(), TorchPrinter()
    read = _read(x.expressions)
    summands = [r.summand for r in x.reductions]
    results = [_reduction(r) for r in x.reductions]
    source = f', source="{x.source}"' if x.source != ELEMENTS else ""
    reads = f", reads={signature.tuple_literal(x.reads)}" if x.reads else ""
    return {
        "name": name,
        "elements": x.source == ELEMENTS,
        "unpack_moments": _unpack_moments(k, read) if x.source == ELEMENTS else "",
        "unpack": layout.unpacked(_named([*k.outputs, *x.reads], read), "scalars"),
        "math": [{"triton": _line(4, s, triton), "torch": _line(4, s, torch)} for s in x.math],
        "triton": layout.tuple_of([triton(e) for e in summands]),
        "torch": layout.tuple_of([torch(e) for e in summands]),
        "literal": f"Sums({layout.tuple_of(results)}, {name}_reference, {name}{source}{reads})",
    }


def _reduction(r: Reduction) -> str:
    words = [r.name, r.kind, r.over, r.how, r.matrix]
    while not words[-1]:
        words.pop()
    return "Reduction(" + ", ".join(f'"{w}"' for w in words) + ")"


def _totals(k: KernelProgram, x: Totals) -> dict[str, object]:
    """What is summed over many tensors; it reads what the step reads."""
    made = _sums(k, replace(x.sums, reads=k.reads), "_totals")
    given = {
        "names": signature.tuple_literal(x.names),
        "over": f'"{x.over}"',
        "reference": "_totals_reference",
        "kernel": "_totals",
        "rounds": x.rounds or "",
        "trailing": x.trailing or "",
    }
    return {**made, "slots": [f"{name}={value}" for name, value in given.items() if value != ""]}


def _derived(k: KernelProgram, x: Derived, name: str) -> dict[str, object]:
    """What is made of the numbers over some dimensions."""
    triton, torch = TritonPrinter(), TorchPrinter()
    read = _read(s.expr for s in x.math)
    reads = f", reads={signature.tuple_literal(x.reads)}" if x.reads else ""
    outputs = signature.tuple_literal(x.outputs)
    return {
        "name": name,
        "what": f"over axis={NOTATION[x.over]}" if x.over else "of the tensor",
        "unpack": layout.unpacked(_named([*k.outputs, *x.reads], read), "scalars"),
        "math": [{"triton": _line(4, s, triton), "torch": _line(4, s, torch)} for s in x.math],
        "results": layout.tuple_of(x.outputs),
        "literal": f'Derived("{x.over}", {outputs}, {name}_reference, {name}{reads})',
    }


def _evaluation(k: KernelProgram, e: Evaluation) -> dict[str, object]:
    """What ``evaluation.py.j2`` prints."""
    torch, python = TorchPrinter(), PythonScalarPrinter()
    read = _read([*(s.expr for s in e.math), e.result])
    known = _read(s.expr for s in e.scalars) | {*e.outputs}
    return {
        "unpack_moments": layout.unpacked(_named([m.name for m in k.moments], read), "moments"),
        "unpack_hypers": layout.unpacked(
            _named([h.name for h in k.program.hypers], known), "hypers"
        ),
        "scalars": [_line(4, s, python) for s in e.scalars],
        "outputs": layout.tuple_of(e.outputs),
        "unpack_scalars": layout.unpacked(_named(e.outputs, read), "scalars"),
        "math": [_line(4, s, torch) for s in e.math],
        "result": torch(e.result),
    }


def _unpack_moments(k: KernelProgram, read: Container[str]) -> str:
    """Lines that name the moments before the step, what those are made of that come apart, and
    behind them the extra inputs per element."""
    apart = {f"{m.name}_prev": [m.code_name, m.scale_name] for m in k.moments if m.apart}
    needed = {whole for whole, parts in apart.items() if any(name in read for name in parts)}
    names = [*(f"{m.name}_prev" for m in k.moments), *k.tensors]
    lines = layout.unpacked([n if n in needed else _named([n], read)[0] for n in names], "moments")
    for whole, parts in apart.items():
        lines += layout.unpacked(_named(parts, read), whole) if whole in needed else ""
    return lines


def _free(class_name: str, source: str) -> None:
    """Refuse a class name by which the module itself calls something else: it would be hidden."""
    tree = ast.parse(source)
    tables, used = symtable.symtable(source, "module", "exec").get_children(), set[str]()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        used |= {s.get_name() for s in table.get_symbols() if s.is_global()}
    for n in ast.walk(tree):
        if isinstance(n, ast.Import | ast.ImportFrom):
            used |= {a.asname or a.name for a in n.names}
        elif isinstance(n, ast.FunctionDef):
            used.add(n.name)
    for n in ast.walk(tree):  # annotations are text, which symtable leaves alone
        for kind in (getattr(n, "annotation", None), getattr(n, "returns", None)):
            used |= {x.id for x in ast.walk(kind) if isinstance(x, ast.Name)} if kind else set()
    if class_name in used or class_name.startswith("__"):
        raise BuildError(
            "SC307",
            f"a class cannot be called {class_name!r}: the generated module uses that name; give "
            "another with --name (name= in Python)",
        )


def _line(indent: int, s: Statement, printer: Infix) -> str:
    """``target = expression  # comment``; a comment that repeats the code is left out."""
    code = layout.bare(printer.whole(s.expr))
    known = ("", code, code.replace(".0", ""), s.target)
    return layout.statement(indent, s.target, code, "" if s.comment in known else s.comment)


def _function_lines(f: Function) -> dict[str, object]:
    """What ``functions.py.j2`` prints of a decomposed function."""
    printers = {"triton": TritonFunctionPrinter(), "torch": TorchFunctionPrinter()}
    lines = {
        dialect: [*(_line(4, s, printer) for s in f.statements), f"    return {printer(f.result)}"]
        for dialect, printer in printers.items()
    }
    return {"name": f.name, "parameters": f.parameters, "doc": f.doc, **lines}


def _read(exprs: Iterable[Expr]) -> set[str]:
    """Variables that expressions read."""
    return {local_name(n) for e in exprs for n in walk(e) if isinstance(n, Ref)}


def _named(names: Sequence[str], read: Container[str]) -> list[str]:
    """Names to unpack a tuple into: ``_`` for what is not read."""
    return [name if name in read else "_" for name in names]


__all__ = ["Module", "render"]
