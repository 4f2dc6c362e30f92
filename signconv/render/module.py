"""From a KernelProgram to the text of a module: names, labels and line breaks; no arithmetic."""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from signconv.errors import BuildError
from signconv.ir.describe import algorithm, remarks
from signconv.ir.nodes import Expr, Hyper, Op, Program, Ref, mul, walk
from signconv.ir.show import Infix
from signconv.lower.kernel_program import (
    KernelProgram,
    MomentPlan,
    Reduction,
    Statement,
    local_name,
)
from signconv.render.environment import environment
from signconv.render.printers import (
    PythonScalarPrinter,
    TorchPrinter,
    TritonPrinter,
    TritonScalarPrinter,
)
from signconv.runtime.formats import FORMATS, ROOT_ORDERS

WIDTH = 100
#: Raised when the meaning of the runtime functions changes: old checkpoints are then refused.
RUNTIME_VERSION = 1

STORAGE = {
    "fp32": "fp32",
    "bf16": "bf16, rounded stochastically",
    "e4m3-raw": "E4M3 codes without scales, rounded to nearest",
    "e4m3": "E4M3 codes with a power-of-two scale per 32 elements, rounded stochastically",
    **{
        f"e4m3-root{p}": f"E4M3 codes of the root of order {p} with a power-of-two scale per 32 "
        "elements, rounded stochastically without bias in the moment itself"
        for p in ROOT_ORDERS
    },
    "e5m2": "E5M2 codes with a power-of-two scale per 32 elements, rounded stochastically",
}


@dataclass(frozen=True)
class Module:
    """A generated module: what it is called and its text."""

    class_name: str
    file_name: str
    source: str


def program_hash(k: KernelProgram) -> str:
    """16 hex digits over everything that decides the numbers; names and documentation are not."""
    parts = [
        RUNTIME_VERSION,
        k.state,
        k.scalars,
        k.outputs,
        k.math,
        k.moments,
        k.words,
        k.memory,
        k.reductions,
        k.precision,
    ]
    described = repr([[_bare(s) for s in x] if isinstance(x, tuple) else x for x in parts])
    described += repr([(h.name, h.ge, h.gt, h.le, h.lt) for h in k.program.hypers])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _summand(r: Reduction) -> Expr:
    """What is summed over the tensor: squares for a norm."""
    return mul(r.operand, r.operand) if r.kind == "norm" else r.operand


def _by_codec(statements: tuple[Statement, ...]) -> bool:
    return any("CODEC" in _line(0, s, TritonPrinter()) for s in statements)


def _bare(x: object) -> object:
    return (x.target, x.expr) if isinstance(x, Statement) else x


def render(k: KernelProgram, class_name: str, file_name: str, spec: str, command: str) -> Module:
    """Fill the templates; the result is parsed before it is returned (BuildError otherwise)."""
    p = k.program
    moments = [m.name for m in k.moments]
    remembered = [name for name, _ in k.memory]
    reductions = [r.name for r in k.reductions]
    math = [s.expr for s in (*k.math, *k.reduce_math)] + [_summand(r) for r in k.reductions]
    scalars = [s.expr for s in k.scalars]
    digest = program_hash(k)
    constructor = _constructor(p)
    context = {
        "summary": _summary(k),
        "doc": _wrap(p.doc),
        "box": _box(p),
        "notes": _notes(k),
        "command": _escaped(command),
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
        "scalar_states": _tuple([f'("{n}", {x!r})' for n, x in k.memory]) if k.memory else "",
        "unpack_hypers": _unpack([h.name for h in p.hypers], "hypers"),
        "unpack_states": _unpack([f"{n}_prev" for n in remembered], "states"),
        "unpack_moments": _unpack([f"{m}_prev" for m in moments], "moments"),
        "unpack_scalars": _unpack([*k.outputs, *reductions], "scalars"),
        "unpack_outputs": _unpack(_read_by_summands(k), "scalars"),
        "results": _results(k.outputs, remembered),
        "new_moments": _tuple(moments),
        "math": [
            {"triton": _line(4, s, TritonPrinter()), "torch": _line(4, s, TorchPrinter())}
            for s in k.math
        ],
        "reductions": _tuple_literal([r.kind for r in k.reductions]) if reductions else "",
        "reduce_math": [
            {"triton": _line(4, s, TritonPrinter()), "torch": _line(4, s, TorchPrinter())}
            for s in k.reduce_math
        ],
        "operands_torch": _tuple([TorchPrinter()(_summand(r)) for r in k.reductions]),
        "operands": _tuple([TritonPrinter()(_summand(r)) for r in k.reductions]),
        "moments": k.moments,
        "class_name": class_name,
        "spec_literal": json.dumps(spec, ensure_ascii=False),
        "passes_tuple": _tuple_literal(p.history),
        "storage": k.state,
        "precision": k.precision,
        "hyper_slots": [_hyper_slot(h, _betas(p)) for h in p.hypers],
        "moment_slots": [_moment_slot(m) for m in k.moments],
        "constructor": [a for a in constructor if a["name"] != "lr"],
        "lr_doc": f"learning rate, {_lr(p).legal}; a float or a one-element tensor.",
        "lr_default": repr(_lr(p).default),
        "removed": [(n, _string_lines(r)) for n, r in p.removed],
        "quotients": _by_codec(k.math),
        "uses_dev": _calls("dev", TritonPrinter, math)
        or _calls("dev", TritonScalarPrinter, scalars),
        "uses_ref": _calls("ref", TorchPrinter, math)
        or _calls("ref", PythonScalarPrinter, scalars),
        "uses_torch": any("torch." in TorchPrinter()(s.expr) for s in k.math),
        "uses_real_t": any("real_t" in PythonScalarPrinter()(s.expr) for s in k.scalars),
        "python_math": any("math." in PythonScalarPrinter()(s.expr) for s in k.scalars),
    }
    source = environment().get_template("module.py.j2").render(context)
    source = _long_calls(source)
    try:
        compile(source, file_name, "exec")
    except SyntaxError as error:
        raise BuildError(
            "SC390", f"{file_name} did not come out as valid Python: {error}"
        ) from error
    return Module(class_name, file_name, source)


# ---------------------------------------------------------------- tuples


def _tuple(items: Sequence[str]) -> str:
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def _unpack(names: Sequence[str], source: str) -> str:
    """``a, b = source``, a line or, where it is too long, a name a line."""
    if not names:
        return ""
    if len(names) == 1:
        return f"    ({names[0]},) = {source}\n"
    flat = f"    {', '.join(names)} = {source}"
    if len(flat) <= WIDTH:
        return f"{flat}\n"
    return "    (\n" + "".join(f"        {n},\n" for n in names) + f"    ) = {source}\n"


def _read_by_summands(k: KernelProgram) -> list[str]:
    """The outputs, those that no reduction reads as ``_``."""
    exprs = [*(s.expr for s in k.reduce_math), *(r.operand for r in k.reductions)]
    read = {local_name(n) for e in exprs for n in walk(e) if isinstance(n, Ref)}
    return [name if name in read else "_" for name in k.outputs]


def _calls(module: str, printer: type[Infix], expressions: Sequence[Expr]) -> bool:
    """Whether any operation is printed as a function of ``module``."""
    named = {fn for fn, name in printer.calls.items() if name.startswith(f"{module}.")}
    if "ipow" in named:
        named |= {"pow"}
    used = {n.fn for e in expressions for n in walk(e) if isinstance(n, Op)}
    return bool(named & (used - printer.infix))


def _results(outputs: Sequence[str], remembered: Sequence[str]) -> str:
    """The pair that ``_scalars`` returns."""
    parts = [_tuple(outputs), _tuple(remembered)]
    if len(f"    return {', '.join(parts)}") <= WIDTH:
        return ", ".join(parts)
    lines = []
    for part, names in zip(parts, (outputs, remembered), strict=True):
        if len(part) + 9 > WIDTH:
            part = "(\n" + "".join(f"            {n},\n" for n in names) + "        )"
        lines.append(f"        {part},\n")
    return f"(\n{''.join(lines)}    )"


# ---------------------------------------------------------------- arithmetic lines


def _line(indent: int, s: Statement, printer: Infix) -> str:
    """``target = expression  # comment``, broken where it is too long."""
    pad = " " * indent
    code = printer.whole(s.expr)
    if code.startswith("(") and code.endswith(")") and _closes_at_end(code):
        code = code[1:-1]
    known = (code, code.replace(".0", ""), s.target)
    comment = "" if s.comment in ("", *known) else f"  # {s.comment}"
    flat = f"{pad}{s.target} = {code}"
    if len(flat) > WIDTH:
        flat = f"{pad}{s.target} = {_broken(code, indent)}"
    if (comment and len(flat) + len(comment) > WIDTH) or "\n" in flat:
        label = textwrap.wrap(s.comment, WIDTH - indent - 2) if comment else []
        return "\n".join([*(f"{pad}# {x}" for x in label), flat])
    return flat + comment


def _broken(code: str, indent: int) -> str:
    """A long expression over several lines, as a formatter would break it."""
    pad, deeper = " " * indent, " " * (indent + 4)
    opening = code.find("(")
    called = re.fullmatch(r"[\w.]+", code[:opening]) if opening > 0 else None
    if code.endswith(")") and called and _closes_at_end(code[opening:]):
        inner = code[opening + 1 : -1]
        if len(deeper + inner) <= WIDTH:
            return f"{code[:opening]}(\n{deeper}{inner}\n{pad})"
        parts = _split(inner, (", ",))
        lines = "".join(f"{deeper}{_fit(x, indent + 4)},\n" for x in parts)
        return f"{code[:opening]}(\n{lines}{pad})"
    if len(deeper + code) <= WIDTH:
        return f"(\n{deeper}{code}\n{pad})"
    relations = (" < ", " <= ", " > ", " >= ", " == ", " != ")
    for signs in ((" if ", " else "), relations, (" + ", " - "), (" * ", " / ")):
        parts = _split(code, signs, keep=True)
        if len(parts) > 1:
            return "(\n" + "".join(f"{deeper}{_fit(x, indent + 4)}\n" for x in parts) + f"{pad})"
    return code


def _fit(code: str, indent: int) -> str:
    """A part that may start with the operator it was split at: only its operand is broken."""
    if indent + len(code) < WIDTH:
        return code
    sign = re.match(r"(if|else|[-+*/<>]|[<>=!]=) ", code)
    if sign is None:
        return _broken(code, indent)
    return sign[0] + _broken(code[sign.end() :], indent)


def _closes_at_end(code: str) -> bool:
    depth = 0
    for i, c in enumerate(code):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i == len(code) - 1
    return False


def _split(code: str, marks: Sequence[str], keep: bool = False) -> list[str]:
    """Split at marks outside parentheses; with ``keep`` a mark starts the next part."""
    parts, depth, begin, i = [], 0, 0, 0
    while i < len(code):
        depth += (code[i] == "(") - (code[i] == ")")
        mark = next((m for m in marks if depth == 0 and code.startswith(m, i)), None)
        if mark:
            parts.append(code[begin:i])
            begin = i + (1 if keep else len(mark))
            i += len(mark)
        else:
            i += 1
    return [*parts, code[begin:]]


def _long_calls(source: str) -> str:
    """Break the calls that templates write on one line where names made them too long."""
    lines = []
    for line in source.split("\n"):
        if len(line) > WIDTH and " = " in line and not line.lstrip().startswith(("#", '"')):
            indent = len(line) - len(line.lstrip())
            target, code = line.strip().split(" = ", 1)
            line = f"{' ' * indent}{target} = {_broken(code, indent)}"
        elif len(line) > WIDTH and line.lstrip()[:1].isupper() and line.rstrip().endswith("),"):
            indent = len(line) - len(line.lstrip())
            line = " " * indent + _broken(line.strip().rstrip(","), indent) + ","
        lines.append(line)
    return "\n".join(lines)


# ---------------------------------------------------------------- words


def _summary(k: KernelProgram) -> str:
    p = k.program
    link = {
        "ratio": "",
        "stosign": " with an unbiased stochastic sign as update",
        "expected": " with its update clipped to [-1, 1]",
        "sign": " with a sign as update" if p.history else "",
    }[p.link]
    math = ", bf16 arithmetic" if k.precision == "bf16" else ""
    return f"{p.name}{link}, {k.state.upper()} state{math}."


def _wrap(doc: str) -> list[str]:
    lines: list[str] = []
    for paragraph in textwrap.dedent(doc.split("\n", 1)[0] + "\n" + textwrap.dedent(
        doc.split("\n", 1)[1] if "\n" in doc else ""
    )).strip().split("\n\n"):  # fmt: skip
        lines += [*textwrap.wrap(" ".join(paragraph.split()), WIDTH - 4), ""]
    return [_escaped(x) for x in lines[:-1]]


def _escaped(line: str) -> str:
    """A line of the user's words as it may stand in a docstring: what is no printable character,
    a change of writing direction say, is spelled out."""
    line = line.replace("\\", "\\\\").replace('"""', "'''")
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in line)


def _box(p: Program) -> list[str]:
    """The algorithm's lines, broken to fit an indentation of four."""
    lines: list[str] = []
    for line in algorithm(p):
        lines += textwrap.wrap(line, WIDTH - 8, subsequent_indent="    ")
    return lines


def storage_lines(k: KernelProgram) -> list[str]:
    """How each moment is stored."""
    lines = []
    for m in k.moments:
        scaled = FORMATS[m.format].scaled
        fallback = f" ({m.fallback} where a row is not a multiple of 32)" if scaled else ""
        lines.append(f"State {m.name}: {STORAGE[m.format]}{fallback}.")
    return lines


def _notes(k: KernelProgram) -> list[str]:
    lines: list[str] = []
    for note in [*remarks(k.program), *storage_lines(k)]:
        lines += textwrap.wrap(note, WIDTH - 4, subsequent_indent="  ")
    return lines


# ---------------------------------------------------------------- the constructor


def _lr(p: Program) -> Hyper:
    lr = p.hyper("lr")
    assert lr is not None
    return lr


def _betas(p: Program) -> list[str]:
    """The hyperparameters that the constructor takes as one tuple: beta1, beta2, … without gaps."""
    betas: list[str] = []
    while p.hyper(f"beta{len(betas) + 1}") is not None:
        betas.append(f"beta{len(betas) + 1}")
    return betas if len(betas) > 1 else []


def _constructor(p: Program) -> list[dict[str, str]]:
    """Arguments in torch.optim's names and shapes: beta1, beta2, … become betas."""
    betas = _betas(p)
    arguments: list[dict[str, str]] = []
    for h in p.hypers:
        if h.name in betas:
            if h.name != betas[0]:
                continue
            members = [p.hyper(b) for b in betas]
            values = ", ".join(repr(m.default) for m in members if m)
            ranges = ", ".join(m.legal for m in members if m)
            types = ", ".join("float" for _ in members)
            arguments.append(
                {
                    "name": "betas",
                    "type": f"tuple[{types}]",
                    "default": f"({values})",
                    "doc": f"({', '.join(betas)}), {ranges}.",
                }
            )
        else:
            arguments.append(
                {"name": h.name, "type": "float", "default": repr(h.default), "doc": f"{h.legal}."}
            )
    return arguments


def _hyper_slot(h: Hyper, betas: list[str]) -> str:
    key, index = ("betas", betas.index(h.name)) if h.name in betas else (h.name, None)
    parts = [f'"{h.name}"', repr(h.default), f'"{key}"']
    parts += [] if index is None else [f"index={index}"]
    for bound in ("ge", "gt", "le", "lt"):
        value = getattr(h, bound)
        parts += [] if value is None else [f"{bound}={value!r}"]
    return f"HyperSlot({', '.join(parts)}),"


def _moment_slot(m: MomentPlan) -> str:
    parts = [f'"{m.name}"', f'"{m.format}"', f'"{m.fallback}"', f'RandomBits({m.word}, "{m.half}")']
    parts += [] if m.init == 0.0 else [f"init={m.init!r}"]
    return f"MomentSlot({', '.join(parts)}),"


def _tuple_literal(items: Sequence[str]) -> str:
    return "(" + ", ".join(f'"{x}"' for x in items) + ("," if len(items) == 1 else "") + ")"


def _string_lines(words: str) -> list[str]:
    lines = textwrap.wrap(words, 70)
    return [f'"{x}{" " if i < len(lines) - 1 else ""}"' for i, x in enumerate(lines)]


__all__ = ["Module", "program_hash", "render"]
