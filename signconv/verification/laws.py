"""What each pass promises, checked on the float64 evaluator before against after.

Written from docs/design.md#passes and the passes' papers, not from the passes' code.
``signconv verify`` runs them, and so do the tests on random programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from signconv.ir.analysis import is_scalar, unread
from signconv.ir.evaluate import Evaluator
from signconv.ir.nodes import Op, Program, Ref, walk
from signconv.passes.base import canonical, parse, transform

Array = npt.NDArray[np.float64]
SIZE, STEPS = 24, 4


@dataclass(frozen=True)
class Law:
    """``promise`` in words; ``check`` gives what is wrong with it, "" if it holds, and None where
    the two programs cannot be compared."""

    promise: str
    check: Callable[[Program, Program, Mapping[str, str], int], str | None]


def verdicts(
    before: Program, history: tuple[str, ...], levels: int = 32
) -> Iterator[tuple[str, Law, str | None]]:
    """Each pass of ``history`` in its canonical place, its law, and what that finds.

    ``levels``: draws over which the mean of a stochastic sign is taken.
    """
    for request in canonical([parse(text) for text in history]):
        after = transform(before, request)
        law = LAWS[request.name]
        with np.errstate(all="ignore"):
            yield (
                request.text,
                law,
                law.check(_bare(before), _bare(after), dict(request.options), levels),
            )
        before = after


def _bare(p: Program) -> Program:
    """Without weight decay, which no pass touches, and what only it reads."""
    p = replace(p, decay=None)
    gone = set(unread(p, [h.name for h in p.hypers if h.name != "lr"]))
    return replace(p, hypers=tuple(h for h in p.hypers if h.name not in gone))


class _Probe(Evaluator):
    """Keeps the update, which the parameter's rounding would swallow where it is small."""

    update: Array

    def _link(self, scope: Any, noise: Any) -> Array:
        self.update = np.broadcast_to(super()._link(scope, noise), (SIZE,))
        return self.update


def _run(
    p: Program, grads: list[Array], noise: float | None = None, first_t: int = 1
) -> list[tuple[Array, dict[str, Array]]]:
    """Updates (the parameter held) and states of every step."""
    ev = _Probe(p, lr=1.0)
    param = np.linspace(-1.0, 1.0, SIZE)
    state = ev.initial_state(param)
    made = []
    for t, g in enumerate(grads, first_t):
        draw = None if noise is None else np.full(SIZE, noise)
        _, state = ev.step(param, g, state, t, draw)
        made.append((ev.update, state))
    return made


def _gradients() -> list[Array]:
    """Three decades; one element never has a gradient, others have none now and then."""
    rng = np.random.default_rng(4)
    made = [rng.standard_normal(SIZE) * 10.0 ** rng.uniform(-2, 1, SIZE) for _ in range(STEPS)]
    idle = rng.uniform(size=(STEPS, SIZE)) < 0.1
    idle[:, 0] = True
    return [np.where(x, 0.0, g) for x, g in zip(idle, made, strict=True)]


def _differ(a: Array, b: Array, tolerance: float = 1e-9) -> bool:
    """Whether two runs differ where both are numbers."""
    known = np.isfinite(a) & np.isfinite(b)
    size = np.maximum(np.abs(a), np.abs(b))
    return bool((np.abs(a - b) > tolerance * size)[known].any())


def _presign(
    before: Program, after: Program, options: Mapping[str, str], levels: int
) -> str | None:
    """The program before, from zero, fed with the signs of the gradients."""
    grads = _gradients()
    zero = tuple(replace(m, init="zero") if m.init == "first" else m for m in before.moments)
    noise = 0.25 if before.link == "stosign" else None
    old = _run(replace(before, moments=zero), [np.sign(g) for g in grads], noise)
    new = _run(after, grads, noise)
    for (a, s), (b, r) in zip(old, new, strict=True):
        if _differ(a, b) or any(_differ(s[n], r[n]) for n in s):
            return "not the program before on sign(g)"
    return ""


def _nesterov(
    before: Program, after: Program, options: Mapping[str, str], levels: int
) -> str | None:
    """The state is the same; the update is that of seeing the same gradient once more.

    An EMA that sees u again is beta*m + (1 - beta)*u, corrected by 1 - beta**(t+1).  Where other
    things in the update change with the second look there is no such law.
    """
    grads = _gradients()
    noise = 0.25 if before.link == "stosign" else None
    new = _run(after, grads, noise)
    old = _run(before, grads, noise)
    for (_, s), (_, r) in zip(old, new, strict=True):
        if any(_differ(s[n], r[n]) for n in r):
            return "the state changed"
    if not _only_emas_of_the_gradient(before):
        return ""
    ev, param = _Probe(before, lr=1.0), np.linspace(-1.0, 1.0, SIZE)
    for t, (g, (_, s), (update, _)) in enumerate(zip(grads, old, new, strict=True), 1):
        draw = None if noise is None else np.full(SIZE, noise)
        ev.step(param, g, s, t + 1, draw)
        if _differ(ev.update, update):
            return f"step {t} is not the look ahead"
    return ""


def _only_emas_of_the_gradient(p: Program) -> bool:
    ok = all(m.kind == "ema" and m.init in ("zero", "first") for m in p.moments)
    for m in p.moments:
        for e in m.reads:
            kinds = {n.kind for n in walk(e) if isinstance(n, Ref)}
            ok = ok and kinds <= {"grad", "hyper"}
    for e in (*p.roots, *(x.expr for x in p.temps)):
        kinds = {n.kind for n in walk(e) if isinstance(n, Ref)}
        ok = ok and kinds <= {"grad", "hyper", "value", "temp", "param"}
    return ok


def _soft(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """A new moment s = EMA of abs(u)**p beside the EMA m of u, one beta; sigma = s**(1/p)."""
    p = float(options["p"])
    (s,) = {m.name for m in after.moments} - {m.name for m in before.moments}
    beta_name = after.moment(s).beta
    tied = [m.name for m in after.moments if m.beta == beta_name and m.name != s]
    if not isinstance(beta_name, Ref) or len(tied) != 1:
        return f"{s} shares its beta with {len(tied)} other moments instead of one"
    beta, (m,) = after.hyper(beta_name.name).default, tied  # type: ignore[union-attr]
    runs = _run(after, _gradients())
    last_m, last_s = np.zeros(SIZE), np.zeros(SIZE)
    for update, state in runs:
        u = (state[m] - beta * last_m) / (1 - beta)
        wanted = beta * last_s + (1 - beta) * np.abs(u) ** p
        if _differ(state[s], wanted, 1e-6):
            return f"{s} is not the EMA of abs(u)**{p:g}"
        if (np.abs(state[m]) > state[s] ** (1 / p) * (1 + 1e-9)).any():
            return f"abs({m}) > {s}**(1/{p:g})"
        if after.numerator == Ref("value", m):
            if _differ(update, state[m] / state[s] ** (1 / p)):
                return "the update is not m / s**(1/p)"
        last_m, last_s = state[m], state[s]
    return ""


def _ratio(p: Program, like: Program) -> Program:
    """``p`` as a plain ratio, with the hyperparameters that the link took away set to zero."""
    gone = {h.name for h in p.hypers} - {h.name for h in like.hypers}
    hypers = tuple(replace(h, default=0.0, gt=None) if h.name in gone else h for h in p.hypers)
    return replace(p, link="ratio", hypers=hypers)


def _link(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    """clip(ratio) of the program before: as it is, or as the mean of a sign over its draws.

    There a negative sigma mirrors the draws, so that the mean is clip(m/abs(sigma)).
    """
    plain = _ratio(before, after)
    grads = _gradients()
    tops = [u for u, _ in _run(replace(plain, denominator=None), grads)]
    if before.denominator is None:
        (g,) = {m.name for m in after.moments} - {m.name for m in before.moments}
        sigmas = list(np.maximum.accumulate(np.abs(tops)))
        states = [s for _, s in _run(replace(after, link="ratio"), grads)]
        if any(_differ(s[g], largest) for s, largest in zip(states, sigmas, strict=True)):
            return f"{g} is not the running maximum of the numerator"
    else:
        if options.get("eps") != "keep" and _other_offset(before, after):
            return None  # what is added to the denominator goes: another program
        sigma = replace(plain, numerator=before.denominator, denominator=None)
        sigmas = [u for u, _ in _run(sigma, grads)]
    if after.link == "expected":
        found = [u for u, _ in _run(after, grads)]
        wanted = [_clipped(m, s) for m, s in zip(tops, sigmas, strict=True)]
        return "not the clipped ratio" if any(map(_differ, found, wanted)) else ""
    wanted = [_clipped(m, np.abs(s)) for m, s in zip(tops, sigmas, strict=True)]
    draws = [(2 * u + 1 - levels) / levels for u in range(levels)]
    signs = np.mean([[u for u, _ in _run(after, grads, n)] for n in draws], axis=0)
    gap = np.abs(signs - wanted)
    return "mean of the sign is not clip(ratio)" if (gap > 1 / levels + 1e-9).any() else ""


def _clipped(m: Array, sigma: Array) -> Array:
    """clip(m/sigma, -1, 1) with 0/0 = 0."""
    return np.clip(np.where((m == 0) & (sigma == 0), 0.0, m / sigma), -1.0, 1.0)


def _other_offset(before: Program, after: Program) -> bool:
    """Whether anything but a hyperparameter that went is added to, or compared with, sigma."""
    gone = {h.name for h in before.hypers} - {h.name for h in after.hypers}
    pending = [before.denominator]
    while pending:
        for n in walk(pending.pop()):  # type: ignore[arg-type]
            if isinstance(n, Ref) and n.kind == "temp":
                pending.append(before.temp(n.name).expr)
            if isinstance(n, Op) and n.fn in ("add", "max", "sub") and not is_scalar(n, before):
                scalars = [a for a in n.args if is_scalar(a, before)]
                if any(not (isinstance(a, Ref) and a.name in gone) for a in scalars):
                    return True
    return False


def _sign(before: Program, after: Program, options: Mapping[str, str], levels: int) -> str | None:
    grads = _gradients()
    wanted = [np.sign(u) for u, _ in _run(replace(before, denominator=None), grads)]
    found = [u for u, _ in _run(after, grads)]
    return "not sign(numerator)" if any(map(_differ, found, wanted)) else ""


LAWS = {
    "presign": Law("the program before, from zero, on the signs of the gradients", _presign),
    "soft": Law("the denominator is the root of an EMA of abs(u)**p with m's beta", _soft),
    "nesterov": Law("the state is unchanged; one more look at the same gradient", _nesterov),
    "stosign": Law("the mean of the sign is clip(ratio)", _link),
    "expected": Law("clip(ratio)", _link),
    "sign": Law("the sign of the numerator", _sign),
}
