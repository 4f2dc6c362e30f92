"""Random optimizers: whole valid specs, and what they are run on.

Drawn by hypothesis, which shrinks what fails but begins with the smallest programs, or by a random
generator, whose first program is as rich as its last.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from hypothesis import strategies as st

from signconv.passes.base import Pass, registry

HEAD = "from signconv.dsl import Optimizer\n\n\nclass Mine(Optimizer):\n"
SHAPES = (
    (1,), (33,), (32,), (64,), (2, 32), (5, 3), (3, 64), (2, 33), (2, 3, 32), (2049,), (0,),
)  # fmt: skip
GRADIENTS = (
    "normal", "decades", "small", "subnormal", "huge", "zeros", "spike", "nonfinite",
)  # fmt: skip
STATES = ("fp8", "int8", "fp4", "fp32", "bf16", "fp8-raw")
#: Of an option that takes a range, as many values from its lower end.
FEW = 4


def requests(known: Iterable[Pass]) -> list[str]:
    """Every pass as it may be asked for: without options, and with each value of each option.

    An option that takes a range has no default, so its pass is not asked for without it.
    """
    made = []
    for x in known:
        values = {key: _values(words) for key, words in x.options.items()}
        if not any("…" in words for words in x.options.values()):
            made.append(x.name)
        made += [f"{x.name}:{key}={value}" for key in values for value in values[key]]
    return made


def _values(words: str) -> list[str]:
    """What an option takes: of ``keep|drop``, ``1…8``, ``0 < x < 1`` or ``n >= 1``, all or some."""
    for letter, some in (("x", ["0.5", "0.75"]), ("n", ["1", "2", "10"])):
        if letter in words.split():  # a number, of which there is a default
            return some
    low, dots, high = words.partition("…")
    if not dots:
        return words.split("|")
    return [str(n) for n in range(int(low), min(int(high), int(low) + FEW - 1) + 1)]


PASSES = requests(registry().values())


@dataclass(frozen=True)
class Case:
    """One program and its run; the body is what stands below ``class Mine(Optimizer):``."""

    body: tuple[str, ...]
    convert: tuple[str, ...]
    state: str
    math: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    gradients: tuple[str, ...]
    seed: int
    warm: int
    transposed: bool
    maximize: bool

    @property
    def source(self) -> str:
        """The spec file; its first line holds everything that is not the spec."""
        run = {k: v for k, v in asdict(self).items() if k != "body"}
        return f"# {json.dumps(run)}\n{HEAD}" + "".join(f"    {line}\n" for line in self.body)


def read_case(source: str) -> Case:
    """The Case that ``Case.source`` wrote."""
    first, rest = source.split("\n", 1)
    run = json.loads(first.removeprefix("# "))
    body = rest.removeprefix(HEAD).rstrip("\n").split("\n")
    run["shapes"] = tuple(tuple(s) for s in run["shapes"])
    for name in ("convert", "gradients"):
        run[name] = tuple(run[name])
    case = Case(body=tuple(line.removeprefix("    ") for line in body), **run)
    assert set(run) | {"body"} == {f.name for f in fields(Case)}
    return case


class _Author:
    """Writes one class body; every choice is drawn by ``choose`` from a sequence."""

    def __init__(self, choose: Callable[[Sequence[Any]], Any]) -> None:
        self.choose = choose
        self.lines: list[tuple[str, str]] = [("lr", f"lr = hyper({self.pick(1e-2, 0.3)}, ge=0)")]
        self.betas: list[str] = []
        self.emas: list[str] = []
        self.corrected: list[str] = []
        self.nonneg_names: list[str] = []
        self.any_names: list[str] = []
        self.scalars: list[str] = []
        self.reducible = True

    def pick(self, *options: Any) -> Any:
        return self.choose(options)

    def chance(self, one_in: int) -> bool:
        return self.choose(range(one_in)) == one_in - 1

    def define(self, name: str, line: str) -> str:
        self.lines.append((name, line))
        return name

    # ---------------------------------------------------------------- scalars

    def beta(self, closed: bool = False) -> str:
        if self.betas and self.pick(True, False):
            return self.pick(*self.betas)
        default = self.pick(0.9, 0.99, 0.5, 0.999, 0.0)
        name = f"beta{len(self.betas) + 1}" if self.pick(True, False) else f"rho{len(self.betas)}"
        self.betas.append(name)
        return self.define(name, f"{name} = hyper({default}, ge=0, {self.pick('lt=1', 'le=1')})")

    def hyper(self, stem: str, default: float, ranges: str) -> str:
        name = f"{stem}{sum(1 for n, _ in self.lines if n.startswith(stem))}"
        return self.define(name, f"{name} = hyper({default}{ranges})")

    def number(self) -> str:
        return str(self.pick(0.5, 2, 1, 0.1, -1, 3, 1e-3))

    def scalar(self, depth: int = 2) -> str:
        kind = self.pick("number", "hyper", "beta", "rest", "power", "flag", "ramp", "op", "fn",
                         "constant", "edge")  # fmt: skip
        if depth == 0 and kind in ("op", "fn"):
            kind = "number"
        if kind == "number":
            return self.number()
        if kind == "hyper":
            return self.hyper("c", self.pick(0.5, -0.7, 2.0), "")
        if kind == "beta":
            return self.beta()
        if kind == "rest":
            return f"(1 - {self.beta()})"
        if kind == "power":
            return self.pick(f"{self.beta()}**t", f"(1 - {self.beta()}**t)")
        if kind == "flag":
            k = self.pick(2, 3)
            return self.pick(
                f"where(t % {k} == 0, 1, {self.number()})", f"(t % {k})", "where(t == 1, 0, 1)",
                f"where(t > {k}, 1, 0.5)", f"sign((t % {k}) - 1)",
            )  # fmt: skip
        if kind == "ramp":
            return self.pick("min(1, t / 10)", "sqrt(t)", "exp(-t)", "log(t + 1)", "1 / t",
                             "tanh(t / 5)", "clip(t, 2, 4)", "abs(2 - t)",
                             "root(t, 3)")  # fmt: skip
        if kind == "constant":  # a function of numbers alone
            return self.pick("log(2)", "root(2, 3)", "exp(-0.1)", "tanh(0.3)", "sqrt(2)",
                             "max(0.1, 0.2)", "min(0.1, 0.3)", "clip(0.1, 0, 1)")  # fmt: skip
        if kind == "edge":  # negative remainders and exponents, numbers past 2**63
            return self.pick("((t - 5) % 4)", "((t - 2.5) % 1.5)", f"{self.beta()}**(t - 3)",
                             "2**(1 - t)", "t**-1", "where(t > 1e30, 2, 1)", "(t % -3)",
                             f"min(1, {self.beta()}**(t * 1e18))")  # fmt: skip
        if kind == "fn":
            return f"{self.pick('abs', 'sign', 'tanh')}({self.scalar(depth - 1)})"
        if self.scalars and self.pick(True, False):
            return self.pick(*self.scalars)
        mark = self.pick("+", "-", "*", "max", "min")
        a, b = self.scalar(depth - 1), self.scalar(depth - 1)
        return f"{mark}({a}, {b})" if mark in ("max", "min") else f"({a} {mark} {b})"

    # ---------------------------------------------------------------- elements

    def atom(self) -> str:
        names = ["grad", "grad", *self.any_names, *self.nonneg_names, *self.corrected]
        return "param" if self.chance(12) else self.pick(*names)

    def nonneg(self, depth: int) -> str:
        """Provably >= 0."""
        kind = self.pick("abs", "square", "name", "sqrt", "root", "sum", "max", "scaled", "power")
        if kind == "name" and self.nonneg_names:
            return self.pick(*self.nonneg_names)
        if depth == 0 or kind == "abs":
            return f"abs({self.element(depth - 1)})"
        if kind == "square":
            return f"({self.element(depth - 1)})**{self.pick(2, 4)}"
        if kind == "power":
            return f"abs({self.element(depth - 1)})**{self.pick(3, 5, 1, 1.5, 2.5)}"
        if kind == "sqrt":
            return f"sqrt({self.nonneg(depth - 1)})"
        if kind == "root":
            return f"root({self.nonneg(depth - 1)}, {self.pick(2, 3, 4, 1, 5, 2.5)})"
        if kind in ("sum", "max"):
            a, b = self.nonneg(depth - 1), self.pick(self.nonneg(depth - 1), "1e-3")
            return f"({a} + {b})" if kind == "sum" else f"max({a}, {b})"
        return f"{self.beta()} * {self.nonneg(depth - 1)}"

    def element(self, depth: int) -> str:
        if depth <= 0:
            return self.atom()
        kind = self.pick(
            "atom", "sum", "product", "quotient", "scaled", "nonneg", "function", "choice", "clip",
            "extreme", "reduction",
        )  # fmt: skip
        a = self.element(depth - 1)
        if kind == "sum":
            return f"({a} {self.pick('+', '-')} {self.element(depth - 1)})"
        if kind == "product":
            return f"({a} * {self.element(depth - 1)})"
        if kind == "quotient":
            below = self.pick(f"({self.nonneg(1)} + {self.pick(1e-8, 1e-3)})", self.scalar(1),
                              f"sqrt({self.nonneg(1)})")  # fmt: skip
            return f"({a} / {below})"
        if kind == "scaled":
            s = self.scalar()
            return self.pick(f"({s} * {a})", f"({a} * {s})", f"({a} + {s})", f"({s} - {a})")
        if kind == "nonneg":
            return self.nonneg(depth - 1)
        if kind == "function":
            fn = self.pick("sign", "abs", "neg", "tanh", "cube", "exp", "log")
            return {"neg": f"-({a})", "cube": f"({a})**3", "exp": f"exp(clip({a}, -4, 4))",
                    "log": f"log(abs({a}) + 1)"}.get(fn, f"{fn}({a})")  # fmt: skip
        if kind == "choice":
            b, c = self.element(depth - 1), self.element(depth - 1)
            compare = self.pick("<", "<=", ">", ">=", "==", "!=")
            right = self.pick("0", "0.5", b, self.scalar(1))
            return f"where({a} {compare} {right}, {b}, {c})"
        if kind == "clip":
            return f"clip({a}, {self.pick(-1, -0.01, 0)}, {self.pick(1, 0.5, 1e-2)})"
        if kind == "extreme":
            other = self.pick(self.element(depth - 1), self.scalar(1))
            pair = self.pick(f"{a}, {other}", f"{other}, {a}")
            return f"{self.pick('max', 'min')}({pair})"
        if kind == "reduction" and self.reducible:
            axis = self.pick("", "", ", axis=-1", ", axis=-2", ", axis=0", ", axis=(1, ...)",
                             ', axis="block"', ', over="all"')  # fmt: skip
            every = ("max", "min") if "over" not in axis else ()
            kind = self.pick("norm", "mean", "mean", "sum", *every)
            r = f"{kind}({a}{axis})"
            if axis == ", axis=-1" and self.pick(False, True):  # a reduction of a reduction
                r = f"({r} / (1 + abs(mean({r}, axis=-2))))"
            return self.pick(f"min(1, 1 / ({r} + 1)) * {a}", f"{r} * sign({a})",
                             f"where({r} > 0.5, {a}, {a} * 0.5)")  # fmt: skip
        return a

    # ---------------------------------------------------------------- definitions

    def extra(self, i: int) -> None:
        name, per = f"x{i}", self.pick("element", "element", "step")
        ge = self.pick("", "", ", ge=0")
        self.define(name, f'{name} = extra(per="{per}"{ge})')
        kind = self.pick("plain", "asked", "flag", "held")
        if kind == "plain":
            made = name
        elif kind == "asked":
            other = self.pick("0", "0.5", *(["grad"] if per == "element" else ["t"]))
            made, ge = f"where(given({name}), {name}, {other})", ""
        elif kind == "flag":
            made, ge = f"where(given({name}), {name} - 1, 2)", ""
        else:  # what came last
            made = f"held{i}"
            change = f"where(given({name}), {name}, {made}.prev)"
            self.define(made, f"{made} = state(init=1)\n{made}.next = {change}")
        if per == "step":
            self.scalars.append(made)
        else:
            (self.nonneg_names if ge else self.any_names).append(made)

    def moment(self, i: int) -> None:
        kind = self.pick("ema", "second", "max", "order", "state", "previous", "scalar", "slow",
                         "shared")  # fmt: skip
        name = f"{self.pick('m', 'buf')}{i}"
        if kind == "ema":
            init = self.pick("", ', init="first"', "")
            u = self.pick("grad", self.element(1))
            store = self.pick("", "", ', store="fp32"', ', store="bf16"')
            self.define(name, f"{name} = ema({u}, {self.beta()}{init}{store})")
            self.emas.append(name)
            self.any_names.append(name)
            if not init:
                self.corrected.append(f"{name}.corrected")
        elif kind == "second":
            u = self.pick("grad**2", "abs(grad)", f"({self.element(1)})**2")
            store = self.pick("", "", ', store="fp32"', ', store="bf16"')
            self.define(name, f"{name} = ema({u}, {self.beta()}{store})")
            self.nonneg_names += [name, f"{name}.corrected"]
        elif kind == "max":
            beta = self.pick("1", f"{self.beta()}")
            self.define(name, f"{name} = max_ema({self.nonneg(1)}, {beta})")
            self.nonneg_names.append(name)
        elif kind == "order":
            order = self.pick(1, 2, 3, 4)
            self.define(name, f"{name} = moment({self.pick('grad', self.element(1))}, "
                              f"order={order}, beta={self.beta()})")  # fmt: skip
            (self.any_names if order == 1 else self.nonneg_names).append(name)
        elif kind == "state":
            init = self.pick("0", "1", "-0.5", "param")
            change = self.pick(f"{self.beta()} * {name}.prev + {self.element(1)}",
                               f"where(t == 1, {self.element(1)}, {name}.prev)",
                               f"({name}.prev + {self.element(1)}) / 2",
                               f"{self.pick('max', 'min')}({name}.prev, {self.element(1)})"
                               )  # fmt: skip
            self.define(name, f"{name} = state(init={init})\n{name}.next = {change}")
            self.any_names += [name, f"{name}.prev"]
        elif kind == "previous":
            self.define(name, f"{name} = state(init=0)\n{name}.next = grad")
            self.any_names.append(f"{name}.prev")
        elif kind == "shared":  # by all tensors, and known after the step
            what = f'{self.pick("mean", "norm")}({self.element(1)}, over="all")'
            self.define(name, f"{name} = state(init={self.pick(1, 0.5)})\n"
                              f"{name}.next = max({name}.prev / 2, min({what}, 1))")  # fmt: skip
            self.any_names.append(f"({name}.prev * grad)")
        elif kind == "scalar":
            self.define(name, f"{name} = state(init={self.pick(1, 0.5)})\n"
                              f"{name}.next = {name}.prev * {self.beta()} + {self.scalar(1)}"
                              )  # fmt: skip
            self.scalars += [name, f"{name}.prev"]
        else:
            self.define(name, f"{name} = state(init=param)\n{name}.next = {self.beta()} * "
                              f"{name}.prev + (1 - {self.beta()}) * param")  # fmt: skip
            self.any_names.append(f"({name} - param)")

    def temporary(self, i: int) -> None:
        name = f"part{i}" + self.pick("", "", "", "_with_a_long_name" * 12)
        kind = self.pick("element", "nonneg", "scalar", "condition", "deep")
        if kind == "condition":
            self.define(name, f"{name} = {self.element(1)} > {self.scalar(1)}")
            self.any_names.append(f"where({name}, {self.atom()}, 0)")
        elif kind == "deep":
            terms = " + ".join(["0.01 * grad"] * self.pick(60, 120))
            self.define(name, f"{name} = {terms}")
            self.any_names.append(name)
        elif kind == "scalar":
            self.define(name, f"{name} = {self.scalar()} + 0 * t")
            self.scalars.append(name)
        elif kind == "nonneg":
            self.define(name, f"{name} = {self.nonneg(2)} * 1")
            self.nonneg_names.append(name)
        else:
            self.define(name, f"{name} = {self.element(2)} + 0")
            self.any_names.append(name)

    def denominator(self) -> str:
        if not self.nonneg_names:
            self.define("v", f"v = ema(grad**2, {self.beta()})")
            self.nonneg_names += ["v", "v.corrected"]
        v = self.pick(*self.nonneg_names)
        eps = self.pick("", " + eps0")
        if eps:
            self.define("eps0", f"eps0 = hyper({self.pick(1e-8, 1e-3)}, ge=0)")
        kind = self.pick("sqrt", "plain", "root", "inside", "max", "free")
        return {"sqrt": f"sqrt({v}){eps}", "plain": f"{v}{eps}", "root": f"root({v}, 3){eps}",
                "inside": f"sqrt({v}{eps})", "max": f"max(sqrt({v}), {eps[3:] or '1e-3'})",
                "free": f"{self.nonneg(2)}{eps}"}[kind]  # fmt: skip

    def numerator(self) -> str:
        m = self.pick(*self.emas) if self.emas else "grad"
        beta = self.beta()
        made = self.pick(m, f"{beta} * {m} + (1 - {beta}) * grad", self.element(2), self.element(3))
        if self.chance(2):
            return str(made)
        # What is not read is left out: read much of what was defined
        read = [x for x in (*self.any_names, *self.nonneg_names) if not self.chance(3)]
        by = [f" * {x}" for x in self.scalars if not self.chance(3)]
        return " + ".join([f"({made})", *read]) if not by else f"({made}){''.join(by)}"

    def write(self) -> tuple[str, ...]:
        for i in range(self.pick(1, 2) if self.chance(3) else 0):
            self.extra(i)
        for i in range(
            self.pick(0, 1, 2, 3, 1, 2, 3, 20) if self.chance(4) else self.pick(0, 1, 2)
        ):
            self.moment(i)
        for i in range(self.pick(0, 1, 2, 3)):
            self.temporary(i)
        form = self.pick("ratio", "ratio", "numerator", "sign", "stochastic")
        if form == "ratio":
            self.define("", f"numerator = {self.numerator()}")
            self.define("", f"denominator = {self.denominator()}")
        elif form == "numerator":
            self.define("", f"numerator = {self.numerator()}")
        elif form == "sign":
            self.define("", f"update = sign({self.numerator()})")
        else:
            self.define("", f"update = stochastic_sign({self.numerator()}, {self.denominator()})")
        decay = self.pick("", "decoupled", "l2", "independent")
        if decay:
            weight = self.hyper("weight_decay", self.pick(0.01, 0.1), ", ge=0")
            self.define("", f"decay = {decay}({self.pick(weight, weight, f'{weight} * 0.5')})")
        return _read_lines(self.lines)


def _read_lines(lines: list[tuple[str, str]]) -> tuple[str, ...]:
    """Without definitions that nothing reads, each name defined once."""
    known: dict[str, str] = {}
    roots = [text for name, text in lines if not name]
    for name, text in lines:
        if name:
            known.setdefault(name, text)
    live, pending = {"lr"}, list(roots)
    while pending:
        for name in set(re.findall(r"[A-Za-z_]\w*", pending.pop())) & set(known) - live:
            live.add(name)
            pending.append(known[name])
    kept = [text for name, text in known.items() if name in live] + roots
    return tuple(line for text in kept for line in text.split("\n"))


def _beside_ratios(body: tuple[str, ...]) -> tuple[str, ...]:
    """With an average that stands in no ratio: int8 fits no other, and most stand in one."""
    names = [line.partition(" = ")[0] for line in body]
    last = dict(zip(names, (line.partition(" = ")[2] for line in body), strict=True))
    if "denominator" in last:
        update = f"update = ({last['numerator']}) / ({last['denominator']}) + whole"
    elif "numerator" in last:
        update = f"numerator = {last['numerator']} + whole"
    elif last["update"].startswith("sign("):
        update = f"update = {last['update'][:-1]} + whole)"
    else:
        return body
    gone = ("numerator", "denominator", "update")
    kept = (line for name, line in zip(names, body, strict=True) if name not in gone)
    return (*kept, "whole = ema(grad, 0.9)", update)


def _case(choose: Callable[[Sequence[Any]], Any]) -> Case:
    """A spec, the passes to try on it (those that do not apply are left out), and a run."""
    body = _Author(choose).write()
    convert: dict[str, str] = {}
    for _ in range(choose(range(4))):
        request = choose(PASSES)
        convert.setdefault(request.partition(":")[0], request)
    shapes = tuple(choose(SHAPES) for _ in range(choose((1, 2, 3))))
    state = choose(STATES)
    return Case(
        body=_beside_ratios(body) if state == "int8" else body,
        convert=tuple(convert.values()),
        state=state,
        math=choose(("fp32", "fp32", "fp32", "bf16")),
        dtype=choose(("float32", "bfloat16")),
        shapes=shapes,
        gradients=tuple(choose(GRADIENTS) for _ in shapes),
        seed=choose((0, 5, 2**40 + 3)),
        warm=choose(range(4)),
        transposed=choose((False, True)),
        maximize=choose((False, True)),
    )


@st.composite
def cases(draw: Any) -> Case:
    """Cases that hypothesis draws and shrinks."""
    return _case(lambda options: draw(st.sampled_from(options)))


def random_case(number: int) -> Case:
    """The case of a number: always the same one."""
    return _case(random.Random(number).choice)


#: What a program may draw, and how it shows in its text.
FEATURES = {
    "20 moments": r"(?:m|buf)19 = ",
    "long names": "_with_a_long_name",
    "deep expressions": r"(?:0\.01 \* grad \+ ){20}",
    "named conditions": r"^part\w+ = .* > ",
    "numbers' functions": r"log\(2\)|root\(2,|exp\(-0|tanh\(0|sqrt\(2|(?:max|min|clip)\(0\.1",
    "scalar edges": r"\(t - [25]|1 - t|t\*\*-1|1e30|1e18|% -3",
    "fractional powers": r"\*\*[12]\.5|, 2\.5\)",
    "reductions": r"norm\(|mean\(",
    "sums over all tensors": 'over="all"',
    "remainders": "%",
    "exp, log or tanh": r"exp\(|log\(|tanh\(",
    "comparisons": r"where\(",
    "extra inputs": r"extra\(",
    "inputs asked for": r"given\(",
}


def features(case: Case) -> set[str]:
    """Those of FEATURES that a program draws."""
    text = "\n".join(case.body)
    return {name for name, mark in FEATURES.items() if re.search(mark, text, re.MULTILINE)}
