"""The constructor of a generated class, and the slots that tell the runtime its layout."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from signconv.ir.extras import needed
from signconv.ir.nodes import Hyper, Program, Ref
from signconv.ir.values import Values
from signconv.lower.identity import meaning
from signconv.lower.kernel_program import MomentPlan
from signconv.render.layout import WIDTH, tuple_of
from signconv.render.words import literal


def lr_of(p: Program) -> Hyper:
    lr = p.hyper("lr")
    assert lr is not None
    return lr


def betas_of(p: Program) -> list[str]:
    """The hyperparameters that the constructor takes as one tuple: beta1, beta2, … without gaps."""
    betas: list[str] = []
    while p.hyper(f"beta{len(betas) + 1}") is not None:
        betas.append(f"beta{len(betas) + 1}")
    return betas if len(betas) > 1 else []


def constructor(p: Program) -> list[dict[str, str]]:
    """Arguments in torch.optim's names and shapes: beta1, beta2, … become betas."""
    betas = betas_of(p)
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
                    "doc": _described("betas", f"({', '.join(betas)}), {ranges}."),
                }
            )
        else:
            arguments.append(
                {
                    "name": h.name,
                    "type": "float",
                    "default": repr(h.default),
                    "doc": _described(h.name, f"{h.legal}."),
                }
            )
    return arguments


def _described(name: str, words: str) -> str:
    """An argument's words as they follow its name in the docstring, at an indentation of eight."""
    lines = textwrap.wrap(f"{name}: {words}", WIDTH - 8, subsequent_indent=" " * 4)
    return f"\n{' ' * 8}".join(lines)[len(name) + 2 :]


def hyper_slot(h: Hyper, betas: list[str]) -> str:
    key, index = ("betas", betas.index(h.name)) if h.name in betas else (h.name, None)
    parts = [f'"{h.name}"', repr(h.default), f'"{key}"']
    parts += [] if index is None else [f"index={index}"]
    for bound in ("ge", "gt", "le", "lt"):
        value = getattr(h, bound)
        parts += [] if value is None else [f"{bound}={value!r}"]
    return f"HyperSlot({', '.join(parts)}),"


def moment_slots(moments: Sequence[MomentPlan], p: Program) -> list[str]:
    values = Values(p)
    return [_moment_slot(m, p, values.of_moment(m.name)) for m in moments]


def _moment_slot(m: MomentPlan, p: Program, values: int) -> str:
    parts = [f'"{m.name}"', f'"{m.format}"', f"RandomBits({m.word}, {m.field})"]
    start = literal(m.init) if isinstance(m.init, str) else repr(m.init)
    parts += [] if m.init == 0.0 else [f"init={start}"]
    parts += ["apart=True"] if m.apart else []
    if of := meaning(p, m.name):
        parts.append(f"of={literal(of)}")
        beta = p.moment(m.name).beta
        parts += [f'beta="{beta.name}"'] if isinstance(beta, Ref) and beta.kind == "hyper" else []
    parts += [f"values={values}"] if values else []
    return f"MomentSlot({', '.join(parts)}),"


def extra_slots(p: Program) -> list[str]:
    read, made = needed(p), []
    for x in p.extras:
        parts = [f'"{x.name}"', f'"{x.per}"']
        parts += ["needed=True"] if x.name in read else []
        parts += ["nonneg=True"] if x.nonneg else []
        made.append(f"ExtraSlot({', '.join(parts)}),")
    return made


def step_doc(p: Program) -> list[str]:
    """What ``step`` takes, as the class's docstring says it at an indentation of four."""
    if not p.extras:
        return []
    call = ", ".join(f"{x.name}=..." for x in p.extras)
    return textwrap.wrap(
        f"step(closure, {call}) takes extra inputs (docs/using.md#extra-inputs).", WIDTH - 4
    )


def tuple_literal(items: Sequence[str]) -> str:
    return tuple_of([f'"{x}"' for x in items])


def states_literal(states: Sequence[tuple[str, float]]) -> str:
    """Names and initial values of scalar states."""
    return tuple_of([f'("{n}", {x!r})' for n, x in states])
