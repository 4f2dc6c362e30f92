"""Lines that are too long, broken by the syntax tree in the style of ``ruff format``.

Text is parsed with ``ast``; what is kept whole is cut out of the source, so that literals stay as
they were printed.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator, Sequence

from signconv.render.document import Break, Doc, Group, IfBroken, Indent, printed

WIDTH = 100

#: How tightly operators bind; a chain is broken at those of its loosest strength.
_OPERATORS: dict[type[ast.AST], tuple[str, int]] = {
    ast.Mult: ("*", 2),
    ast.Div: ("/", 2),
    ast.Mod: ("%", 2),
    ast.FloorDiv: ("//", 2),
    ast.Add: ("+", 1),
    ast.Sub: ("-", 1),
    ast.LShift: ("<<", 0),
    ast.RShift: (">>", 0),
    ast.BitAnd: ("&", -1),
    ast.BitXor: ("^", -2),
    ast.BitOr: ("|", -3),
    ast.Lt: ("<", -4),
    ast.LtE: ("<=", -4),
    ast.Gt: (">", -4),
    ast.GtE: (">=", -4),
    ast.Eq: ("==", -4),
    ast.NotEq: ("!=", -4),
}

Part = ast.expr | ast.keyword
#: The first and the last node of what is replaced as one, and its new text.
Edit = tuple[ast.AST, ast.AST, str]


def statement(indent: int, target: str, code: str, comment: str = "") -> str:
    """``target = code  # comment``; a comment that does not fit beside it goes above."""
    pad = " " * indent
    flat = f"{pad}{target} = {bare(code)}"
    beside = f"  # {comment}" if comment else ""
    if len(flat + beside) <= WIDTH:
        return flat + beside
    label = textwrap.wrap(comment, WIDTH - indent - 2) if comment else []
    return "\n".join([*(f"{pad}# {line}" for line in label), fitted(flat)])


def bare(code: str) -> str:
    """An expression without parentheses around the whole of it."""
    if not code.startswith("("):
        return code
    try:
        whole = ast.parse(code, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        return code
    return code.encode()[whole.col_offset : whole.end_col_offset].decode()


def fitted(source: str) -> str:
    """A module, or one statement at any indentation, without lines over WIDTH where that can be.

    What does not parse comes back as it is: the caller compiles the result and says so.
    """
    rows = source.split("\n")
    long = {i for i, row in enumerate(rows, 1) if len(row) > WIDTH}
    if not long:
        return source
    margin = len(rows[0]) - len(rows[0].lstrip(" "))
    layout = _Layout([row[margin:] for row in rows], long, margin)
    try:
        for node in ast.parse("\n".join(layout.text)).body:
            layout.fit(node)
    except (SyntaxError, RecursionError, MemoryError):
        return source
    return layout.edited()


class _Layout:
    """One source and what replaces its long lines."""

    def __init__(self, rows: list[str], long: set[int], margin: int) -> None:
        self.text = rows
        self.rows = [row.encode() for row in rows]
        self.long, self.margin = long, margin
        self.edits: list[Edit] = []

    def edited(self) -> str:
        """The source with all edits made, the last one first."""
        for first, last, made in sorted(self.edits, key=lambda e: _start(e[0]), reverse=True):
            (top, begin), (bottom, end) = _start(first), _end(last)
            whole = self.rows[top][:begin] + made.encode() + self.rows[bottom][end:]
            self.rows[top : bottom + 1] = whole.split(b"\n")
        pad = b" " * self.margin
        return b"\n".join(pad + row if row else row for row in self.rows).decode()

    # ---------------------------------------------------------------- what is to be broken

    def fit(self, node: ast.AST) -> None:
        """Find the statements, targets and elements of lists that stand on long lines."""
        if isinstance(node, ast.stmt) and _one_line(node) and node.lineno in self.long:
            self._simple(node)
        elif isinstance(node, ast.expr | ast.keyword) and self._alone(node, node):
            self._edit(node, node, self.docs(node), room=1)
        elif isinstance(node, ast.Assign) and node.lineno in self.long:
            self._targets(node)
        elif isinstance(node, ast.arguments):
            self._parameters(node)
        else:
            for child in ast.iter_child_nodes(node):
                self.fit(child)

    def _simple(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            head = f"{self.cut(node.targets[0])} = "
            self._edit(node, node, self.right_side(node.value, head, _start(node)[1]))
            if isinstance(node.targets[0], ast.Tuple):
                self._long_target(node, node.targets[0])
        elif isinstance(node, ast.AugAssign):
            head = f"{self.cut(node.target)} {_OPERATORS[type(node.op)][0]}= "
            self._edit(node, node, self.right_side(node.value, head, _start(node)[1]))
        elif isinstance(node, ast.Return) and node.value is not None:
            self._edit(node, node, self.right_side(node.value, "return ", _start(node)[1]))
        elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
            self._edit(node, node, self.right_side(node.value, "", _start(node)[1]))

    def _targets(self, node: ast.Assign) -> None:
        """The names on the left where only the right side goes over several lines."""
        target = node.targets[0]
        if isinstance(target, ast.Tuple) and _one_line(target):
            self._edit(target, target, (_bracketed("(", self._elements(target), ")"),))
        self.fit(node.value)

    def _long_target(self, node: ast.Assign, target: ast.Tuple) -> None:
        made = self.edits[-1][2]
        if self.margin + _start(node)[1] + len(made.split("\n")[0]) > WIDTH:
            self.edits.pop()
            left = _bracketed("(", self._elements(target), ")")
            self._edit(node, node, (left, " = ", *self.docs(node.value)))

    def _parameters(self, node: ast.arguments) -> None:
        """Parameters with long types or defaults, one a line."""
        last = [*node.posonlyargs, *node.args]
        pairs: list[tuple[ast.arg, ast.expr | None]] = [
            *zip(last[len(last) - len(node.defaults) :], node.defaults, strict=True),
            *zip(node.kwonlyargs, node.kw_defaults, strict=True),
        ]
        for name, default in pairs:
            if self._alone(name, default or name):
                kind = (": ", *self.docs(name.annotation)) if name.annotation else ()
                value = (" = ", *self.docs(default)) if default else ()
                self._edit(name, default or name, (name.arg, *kind, *value), room=1)

    def _alone(self, first: ast.AST, last: ast.AST) -> bool:
        """Whether these stand on a long line with nothing else on it but a comma."""
        (top, begin), (bottom, end) = _start(first), _end(last)
        row = self.rows[top]
        around = row[:begin].strip() + row[end:].strip()
        return top == bottom and top + 1 in self.long and around in (b"", b",")

    def _edit(self, first: ast.AST, last: ast.AST, docs: Sequence[Doc], room: int = 0) -> None:
        indent = self.margin + _start(first)[1]
        made = printed(tuple(docs), indent, WIDTH, room)
        # The margin is put back before every row at the end
        rows = [row[self.margin :] for row in made.split("\n")]
        rows[0] = made.split("\n")[0][indent:]
        self.edits.append((first, last, "\n".join(rows)))

    # ---------------------------------------------------------------- documents

    def right_side(self, e: ast.expr, head: str, column: int) -> tuple[Doc, ...]:
        """``head`` and the value of a statement; parentheses come where nothing else can break."""
        indent = self.margin + column
        if isinstance(e, ast.Tuple) and not self._in_parentheses(e):
            return (head, _bracketed(IfBroken("("), self._elements(e), IfBroken(")")))
        whole = self.docs(e)
        if not isinstance(e, ast.BinOp | ast.Compare | ast.IfExp | ast.UnaryOp | ast.Attribute):
            if isinstance(e, ast.Name | ast.Constant):
                wrapped = f"{' ' * (indent + 4)}{self.cut(e)}"
                return (
                    (head, "(", Indent((Break(), *whole)), Break(), ")")
                    if (len(wrapped) <= WIDTH)
                    else (head, *whole)
                )
            return (head, *whole)
        if self._keeps_open(e):
            bare = (head, *_unbroken(whole))
            lines = printed(bare, indent, WIDTH).split("\n")
            if len(lines[0]) <= WIDTH:
                return bare
        return (head, _bracketed(IfBroken("("), whole, IfBroken(")")))

    def docs(self, node: Part) -> tuple[Doc, ...]:
        """A node as it stands in brackets, its own parentheses not included."""
        if isinstance(node, ast.keyword):
            return (f"{node.arg}=" if node.arg else "**", *self.inside(node.value, node))
        if isinstance(node, ast.BinOp | ast.Compare):
            return (Group(tuple(self._chain(node))),)
        if isinstance(node, ast.IfExp):
            test, other = self.inside(node.test, node), self.inside(node.orelse, node)
            body = self.inside(node.body, node)
            return (Group((*body, Break(" "), "if ", *test, Break(" "), "else ", *other)),)
        if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
            sign = self.cut(node)[: node.operand.col_offset - node.col_offset].rstrip("( ")
            return (sign, *self.inside(node.operand, node))
        if isinstance(node, ast.Call):
            values: list[Part] = sorted([*node.args, *node.keywords], key=_start)
            if not values:
                return (*self.inside(node.func, node), "()")
            listed = self._listed(values, node)
            return (*self.inside(node.func, node), _bracketed("(", (Group(listed),), ")"))
        if isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Name):
            return (*self.inside(node.value, node), f".{node.attr}")
        if isinstance(node, ast.Subscript):
            index: tuple[Doc, ...] = self.docs(node.slice)
            if isinstance(node.slice, ast.Tuple) and not self._in_parentheses(node.slice):
                index = (Group(self._elements(node.slice)),)
            return (*self.inside(node.value, node), _bracketed("[", index, "]"))
        if isinstance(node, ast.Tuple) and node.elts:
            return (_bracketed("(", self._elements(node), ")"),)
        if isinstance(node, ast.List) and node.elts:
            return (_bracketed("[", self._elements(node), "]"),)
        return (self.cut(node),)

    def inside(self, node: ast.expr, parent: ast.AST) -> tuple[Doc, ...]:
        """A node with the parentheses that stand around it inside its parent."""
        made = self.docs(node)
        for _ in range(self._parentheses(node, parent)):
            made = (_bracketed("(", made, ")"),)
        return made

    def _chain(self, node: ast.BinOp | ast.Compare) -> Iterator[Doc]:
        """Operands and operators of one strength; a loop, since sums have many terms."""
        if isinstance(node, ast.Compare):
            yield from self.inside(node.left, node)
            for op, right in zip(node.ops, node.comparators, strict=True):
                yield from (Break(" "), f"{_OPERATORS[type(op)][0]} ", *self.inside(right, node))
            return
        strength = _OPERATORS[type(node.op)][1]
        right_sides: list[ast.BinOp] = [node]
        left = node.left
        while (
            isinstance(left, ast.BinOp)
            and _OPERATORS[type(left.op)][1] == strength
            and not self._parentheses(left, right_sides[-1])
        ):
            right_sides.append(left)
            left = left.left
        yield from self.inside(left, right_sides[-1])
        for x in reversed(right_sides):
            sign = _OPERATORS[type(x.op)][0]
            yield from (Break(" "), f"{sign} ", *self.inside(x.right, x))

    def _elements(self, node: ast.Tuple | ast.List) -> tuple[Doc, ...]:
        return self._listed(node.elts, node, single=isinstance(node, ast.Tuple))

    def _listed(
        self, values: Sequence[Part], parent: ast.AST, single: bool = False
    ) -> tuple[Doc, ...]:
        """Values with commas between them, and one at the end where they stand line by line."""
        made: list[Doc] = []
        for i, x in enumerate(values):
            made += [",", Break(" ")] if i else []
            made += self.docs(x) if isinstance(x, ast.keyword) else self._element(x, parent)
        return (*made, "," if single and len(values) == 1 else IfBroken(","))

    def _element(self, node: ast.expr, parent: ast.AST) -> tuple[Doc, ...]:
        """An element, whose outermost parentheses may be those of the list."""
        own = self._parentheses(node, parent)
        alone = isinstance(parent, ast.Call) and len(parent.args) + len(parent.keywords) == 1
        made = self.docs(node)
        for _ in range(own - alone):
            made = (_bracketed("(", made, ")"),)
        return made

    # ---------------------------------------------------------------- the source

    def cut(self, node: ast.AST) -> str:
        """The source of a node that stands on one line."""
        (top, begin), (_, end) = _start(node), _end(node)
        return self.rows[top][begin:end].decode()

    def _parentheses(self, node: ast.AST, parent: ast.AST) -> int:
        """How many pairs of parentheses stand around a node inside its parent."""
        row = self.rows[_start(node)[0]]
        before = row[_start(parent)[1] : _start(node)[1]].rstrip()
        after = row[_end(node)[1] : _end(parent)[1]].lstrip()
        found = 0
        while before.endswith(b"(") and after.startswith(b")"):
            before, after = before[:-1].rstrip(), after[1:].lstrip()
            found += 1
        return found

    def _in_parentheses(self, node: ast.Tuple) -> bool:
        """Whether the parentheses at the ends of a tuple are its own."""
        if not self.cut(node).startswith("(") or not node.elts:
            return not node.elts
        first = node.elts[0]
        return _start(first)[1] - self._parentheses(first, node) > _start(node)[1]

    def _keeps_open(self, e: ast.expr) -> bool:
        """Whether the operand of its only operator has brackets to break: no others are needed."""
        if isinstance(e, ast.Compare):
            single, first, last = len(e.ops) == 1, e.left, e.comparators[-1]
        elif isinstance(e, ast.BinOp):
            first, last = e.left, e.right
            strength = _OPERATORS[type(e.op)][1]
            single = not (
                isinstance(first, ast.BinOp)
                and _OPERATORS[type(first.op)][1] == strength
                and not self._parentheses(first, e)
            )
        else:
            return isinstance(e, ast.Attribute)
        parent: ast.expr = e
        while isinstance(first, ast.BinOp) and not self._parentheses(first, parent):
            parent, first = first, first.left
        starts = self._parentheses(first, parent) or isinstance(first, ast.Tuple | ast.List)
        parent = e
        while isinstance(last, ast.BinOp) and not self._parentheses(last, parent):
            parent, last = last, last.right
        return single and bool(starts or self._has_brackets(last, parent))

    def _has_brackets(self, e: ast.expr, parent: ast.AST) -> bool:
        if self._parentheses(e, parent) or isinstance(e, ast.Tuple | ast.List):
            return True
        return isinstance(e, ast.Call) and bool(e.args or e.keywords)


def _bracketed(opening: str | IfBroken, parts: Sequence[Doc], closing: str | IfBroken) -> Group:
    return Group((opening, Indent((Break(), *parts)), Break(), closing))


def _unbroken(parts: Sequence[Doc]) -> tuple[Doc, ...]:
    """Without the breaks at operators: outside brackets Python has no lines to break."""
    made: list[Doc] = []
    for x in parts:
        if isinstance(x, Group) and not (x.parts and x.parts[0] in ("(", "[")):
            made += _unbroken(x.parts)
        else:
            made.append(x.flat if isinstance(x, Break) else x)
    return tuple(made)


def _one_line(node: ast.stmt | ast.expr) -> bool:
    return node.lineno == node.end_lineno


def _start(node: ast.AST) -> tuple[int, int]:
    """Row from 0 and byte in it."""
    return node.lineno - 1, node.col_offset  # type: ignore[attr-defined]


def _end(node: ast.AST) -> tuple[int, int]:
    return node.end_lineno - 1, node.end_col_offset  # type: ignore[attr-defined]


__all__ = ["bare", "fitted", "statement"]


# ---------------------------------------------------------------- tuples


def tuple_of(items: Sequence[str]) -> str:
    """``(a, b)``, ``(a,)`` or ``()``."""
    return f"({', '.join(items)}{',' if len(items) == 1 else ''})"


def unpacked(names: Sequence[str], source: str) -> str:
    """``a, b = source`` at an indentation of four: a line or, where too long, a name a line."""
    if not names:
        return ""
    if len(names) == 1:
        return f"    ({names[0]},) = {source}\n"
    flat = f"    {', '.join(names)} = {source}"
    if len(flat) <= WIDTH:
        return f"{flat}\n"
    return "    (\n" + "".join(f"        {n},\n" for n in names) + f"    ) = {source}\n"


def pair(first: Sequence[str], second: Sequence[str]) -> str:
    """Two tuples of names, as a function at an indentation of four returns them."""
    parts = [tuple_of(first), tuple_of(second)]
    if len(f"    return {', '.join(parts)}") <= WIDTH:
        return ", ".join(parts)
    lines = []
    for part, names in zip(parts, (first, second), strict=True):
        if len(part) + 9 > WIDTH:
            part = "(\n" + "".join(f"            {n},\n" for n in names) + "        )"
        lines.append(f"        {part},\n")
    return f"(\n{''.join(lines)}    )"
