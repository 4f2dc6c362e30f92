"""What few numbers an expression can be, read off its form."""

from __future__ import annotations

from signconv.ir.analysis import evaluation_order
from signconv.ir.nodes import Const, Expr, Op, Program, Ref, Temp

Few = frozenset[float] | None
SIGNS = frozenset({-1.0, 0.0, 1.0})


class Values:
    """The numbers that expressions can be, whatever the gradients (NaN aside): of constants, signs
    and choices among them.  None where the form does not say."""

    def __init__(self, p: Program) -> None:
        self.p = p
        self._temps: dict[str, Few] = {}
        for x in evaluation_order(p):  # so that no proof recurses from name to name
            if isinstance(x, Temp):
                self._temps[x.name] = self.of(x.expr)

    def of(self, e: Expr) -> Few:
        if isinstance(e, Const):
            return frozenset({e.value})
        if isinstance(e, Ref) and e.kind == "temp":
            return self._temps[e.name]
        if isinstance(e, Op) and e.fn == "sign":
            return SIGNS
        if isinstance(e, Op) and e.fn == "where":
            first, second = map(self.of, e.args[1:])
            return first | second if first is not None and second is not None else None
        return None

    def of_moment(self, name: str) -> int:
        """How many numbers a state of the spec's own can be after a step; 0: any."""
        after = self.p.moment(name).next
        return len(self.of(after) or ()) if after is not None else 0


__all__ = ["Values"]
