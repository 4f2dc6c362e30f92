"""Which extra inputs a step cannot do without, and what they have a part in."""

from __future__ import annotations

from signconv.ir.nodes import Expr, Moment, Op, Program, Ref, children, walk


def needed(p: Program) -> frozenset[str]:
    """Names of the extra inputs that are read at every step: not in ``where(given(x), ..., ...)``
    alone, in the place that is taken where x was passed."""
    found: set[str] = set()
    seen: set[tuple[Expr, frozenset[str]]] = set()
    temps = {x.name: x.expr for x in p.temps}  # which are read where they are named
    roots = [*p.roots, *(e for m in p.moments for e in m.reads)]
    roots += [] if p.grad is None else [p.grad]
    # Expressions, with what is known to have been passed where they are read
    pending = [(e, frozenset[str]()) for e in roots]
    while pending:
        e, known = pending.pop()
        if isinstance(e, Ref):
            if e.kind in ("extra", "number") and e.name not in known:
                found.add(e.name)
            elif e.kind == "temp" and (e, known) not in seen:
                seen.add((e, known))
                pending.append((temps[e.name], known))
            continue
        asked = _asked(e)
        if asked is None:
            pending += [(a, known) for a in children(e)]
        else:
            _, yes, no = children(e)
            pending += [(yes, known | {asked}), (no, known)]
    return frozenset(found)


def reads_extra(p: Program, e: Expr) -> bool:
    """Whether an extra input has a part in ``e``, through temporaries and moments too."""
    items = {x.name: x.reads if isinstance(x, Moment) else (x.expr,) for x in p.defined}
    seen: set[str] = set()
    pending = [e] if p.extras else []
    while pending:
        for n in walk(pending.pop()):
            if not isinstance(n, Ref):
                continue
            if n.kind in ("extra", "number", "given"):
                return True
            if n.kind in ("value", "prev", "temp") and n.name not in seen:
                seen.add(n.name)
                pending += items[n.name]
    return False


def _asked(e: Expr) -> str | None:
    """The extra input that a choice asks for: it was passed where the choice says yes."""
    if not (isinstance(e, Op) and e.fn == "where" and isinstance(e.args[0], Op)):
        return None
    condition = e.args[0]
    asked = condition.args[0]
    if condition.fn == "ne" and isinstance(asked, Ref) and asked.kind == "given":
        return asked.name
    return None


__all__ = ["needed", "reads_extra"]
