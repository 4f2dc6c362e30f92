"""From a KernelProgram to the text of a module: the templates' context, and the result parsed."""

from __future__ import annotations

import json
from dataclasses import dataclass

from signconv.errors import BuildError
from signconv.ir.nodes import references
from signconv.ir.show import Infix
from signconv.lower.identity import program_hash
from signconv.lower.kernel_program import KernelProgram, Statement
from signconv.render import layout, signature, words
from signconv.render.environment import environment
from signconv.render.printers import (
    PythonScalarPrinter,
    TorchPrinter,
    TritonPrinter,
    TritonScalarPrinter,
    reads_real_t,
)


@dataclass(frozen=True)
class Module:
    """A generated module: what it is called and its text."""

    class_name: str
    file_name: str
    source: str


def render(k: KernelProgram, class_name: str, file_name: str, spec: str, command: str) -> Module:
    """Fill the templates; the result is parsed before it is returned (BuildError otherwise)."""
    p = k.program
    arguments = ["p", "g", *(f"{m.name}_prev" for m in k.moments)]
    inputs = [*arguments, *k.outputs]
    arguments += ["noise"] if k.noise else []
    arguments += [*(r.name for r in k.reductions), *k.outputs]
    digest = program_hash(k)
    constructor = signature.constructor(p)
    betas, lr = signature.betas_of(p), signature.lr_of(p)
    triton, torch = TritonPrinter(), TorchPrinter()
    context = {
        "summary": words.summary(k),
        "doc": words.wrapped(p.doc),
        "box": words.box(p),
        "notes": words.notes(k),
        "command": words.escaped(command),
        "passes": ", ".join(p.history) or "none",
        "hash": digest,
        "hypers": p.hypers,
        "scalars": [
            {
                "python": _line(4, s, PythonScalarPrinter()),
                "triton": _line(4, s, TritonScalarPrinter()),
            }
            for s in k.scalars
        ],
        "outputs": k.outputs,
        "words": k.words,
        "memory": k.memory,
        "memory_literal": "(" + "".join(f'("{n}", {x!r}),' for n, x in k.memory) + ")",
        "math": [{"triton": _line(4, s, triton), "torch": _line(4, s, torch)} for s in k.math],
        "arguments": arguments,
        "math_codec": k.quotients,
        "reduce_codec": k.reduce_quotients,
        "once": [
            *("factor", *k.outputs),
            *(f"{key}{w}" for w in range(k.words) for key in ("key", "other_key")),
        ],
        "formats": [f"{m.name}_format" for m in k.moments],
        "stored": [
            *("p_stored", "g_stored"),
            *(f"{m.name}_{end}" for m in k.moments for end in ("stored", "byte")),
        ],
        "columns": [
            *("clock_row", "index0", "numel", "p_ptr", "g_ptr"),
            *(f"{m.name}_{end}" for m in k.moments for end in ("ptr", "scale_ptr")),
        ],
        "inputs": inputs,
        "reductions": k.reductions,
        "reduce_math": [
            {"triton": _line(4, s, triton), "torch": _line(4, s, torch)} for s in k.reduce_math
        ],
        "summand_names": ", ".join(f"sum{i}" for i in range(len(k.reductions))),
        "operands_torch": ", ".join(torch(x) for x in k.summands),
        "operands": ", ".join(triton(x) for x in k.summands),
        "returns": ", ".join(["p", *(m.name for m in k.moments)]),
        "moments": k.moments,
        "noise": k.noise,
        "class_name": class_name,
        "spec_literal": json.dumps(spec, ensure_ascii=False),
        "passes_tuple": signature.tuple_literal(p.history),
        "state": k.state,
        "precision": k.precision,
        "hyper_slots": [signature.hyper_slot(h, betas) for h in p.hypers],
        "moment_slots": [signature.moment_slot(m) for m in k.moments],
        "constructor": [a for a in constructor if a["name"] != "lr"],
        "lr_doc": f"learning rate, {lr.legal}; a float or a one-element tensor.",
        "lr_default": repr(lr.default),
        "removed": [(n, words.string_lines(r)) for n, r in p.removed],
        "needs_initial_lr": "initial_lr" in k.outputs
        or any("initial_lr" in references(s.expr, "hyper") for s in k.scalars),
        "uses_torch": k.uses(torch.functions_of("torch")),
        "uses_real_t": any(reads_real_t(s.expr) for s in k.scalars),
        "python_math": k.uses_scalar(PythonScalarPrinter().functions_of("math")),
    }
    source = environment().get_template("module.py.j2").render(context)
    source = layout.fitted(source)
    try:
        compile(source, file_name, "exec")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise BuildError(
            "SC390", f"{file_name} did not come out as valid Python: {error}"
        ) from error
    return Module(class_name, file_name, source)


def _line(indent: int, s: Statement, printer: Infix) -> str:
    """``target = expression  # comment``; a comment that repeats the code is left out."""
    code = layout.bare(printer.whole(s.expr))
    known = ("", code, code.replace(".0", ""), s.target)
    return layout.statement(indent, s.target, code, "" if s.comment in known else s.comment)


__all__ = ["Module", "render"]
