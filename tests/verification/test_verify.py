"""All four witnesses: they agree on what is right, and each catches the fault meant for it."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from signconv.generated.adadelta import Adadelta
from signconv.generated.rprop import Rprop
from signconv.generated.sgd import SGD

from signconv.ir.nodes import Const, Moment, Op, Program, Ref, add, map_expressions, mul, sub
from signconv.lower import schedule, sign_form
from signconv.passes import stosign
from signconv.pipeline import Build, apply_passes, build, requests_of, resolve, write
from signconv.pipeline.catalogue import GENERATED, Entry
from signconv.render import printers
from signconv.verification import bits, differential, witnesses
from signconv.verification.report import Row
from tests.support import HEAD, class_of, spec_file

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPECS = ("adamax", "adamw", "lion", "rmsprop", "sgd")
LONG = (("adamw", "stosign", "fp8"), ("sgd", "stosign", "fp8"))
MATRIX = [
    (spec, convert, state)
    for spec in SPECS
    for convert in (None, "stosign")
    for state in ("fp32", "bf16", "fp8")
    if (spec, convert, state) not in LONG
    and Entry(spec, convert, state) not in GENERATED  # those are in test_generated.py
]


def name(configuration: tuple) -> str:
    return "-".join(filter(None, configuration))


def variants() -> Iterator[object]:
    """Each configuration with each dtype of parameters; where the state is not FP8 `make test` runs
    specs as they are in fp32, and with stosign in bf16."""
    for configuration in MATRIX:
        _, convert, state = configuration
        for dtype, label in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
            short = state == "fp8" or state == label == ("bf16" if convert else "fp32")
            marks = () if short else pytest.mark.long
            yield pytest.param(
                configuration, dtype, id=f"{name(configuration)}-{label}", marks=marks
            )


@pytest.mark.parametrize(("configuration", "dtype"), [*variants()])
def test_kernel_equals_reference(configuration: tuple, dtype: torch.dtype, tmp_path: Path) -> None:
    """Two steps from trained state, in this process (conftest.py)."""
    row = bits.compare(
        class_of(
            build(configuration[0], convert=configuration[1], state=configuration[2]), tmp_path
        ),
        dtype,
        DEVICE,
        steps=2,
    )
    assert row.ok, f"{row.subject}: {row.detail}"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("configuration", LONG, ids=name)
def test_kernel_equals_reference_for_long(configuration: tuple, tmp_path: Path) -> None:
    """Fifty steps, as `make verify-all` does for all: in a process of its own, both dtypes."""
    path, _ = write(
        build(configuration[0], convert=configuration[1], state=configuration[2]).module, tmp_path
    )
    rows = differential.kernel_rows(path, DEVICE, steps=50)
    subjects = ["scalars", "float32 parameters", "bfloat16 parameters"]
    assert [r.subject for r in rows] == subjects
    for row in rows:
        assert row.ok, f"{row.subject}: {row.detail}"


@pytest.mark.parametrize("convert", [None, "stosign", "stosign:eps=keep"])
@pytest.mark.parametrize("spec", SPECS)
def test_float64_witnesses_agree(spec: str, convert: str | None, tmp_path: Path) -> None:
    for row in float64_rows(build(spec, convert=convert, state="fp32"), tmp_path):
        assert row.ok, f"{row.witness}: {row.detail}"


# ---------------------------------------------------------------- faults, and who sees them

ORACLE, LAW, EVALUATOR, KERNEL = (
    "oracle - evaluator",
    "pass law",
    "evaluator - reference",
    "reference - kernel",
)


def float64_rows(made: Build, folder: Path) -> list[Row]:
    """The three witnesses that need no kernel; the reference is that of an fp32 build."""
    return [
        witnesses.oracle_row(made.spec, made.base),
        *witnesses.pass_rows(made.base, made.program.history),
        witnesses.reference_row(made.program, class_of(made, folder)),
    ]


def verdict(rows: list[Row]) -> dict[str, bool]:
    """Witness -> whether all of its rows agree."""
    found: dict[str, bool] = {}
    for row in rows:
        assert row.ok is not None, row
        found[row.witness] = found.get(row.witness, True) and row.ok
    return found


def all_rows(made: Build, folder: Path) -> dict[str, bool]:
    """All four; the kernel in this process (conftest.py), which saves the start of another."""
    rows = float64_rows(made, folder)
    return verdict([*rows, bits.compare(class_of(made, folder), torch.float32, DEVICE, steps=1)])


ALL_AGREE = {ORACLE: True, LAW: True, EVALUATOR: True, KERNEL: True}


@pytest.fixture
def adamw_stosign(tmp_path: Path) -> Build:
    return build("adamw", convert="stosign", state="fp32")


def test_nothing_wrong(adamw_stosign: Build, tmp_path: Path) -> None:
    assert all_rows(adamw_stosign, tmp_path) == ALL_AGREE


#: One constant (or one operation) of the kernel alone, in the text of the generated file.
KERNEL_FAULTS = {
    "a factor in the math": ("fma(beta1, m_prev", "fma(0.999 * beta1, m_prev"),
    "a sign in the math": ("dev.sign(direction)", "dev.sign(-direction)"),
    "a scalar": ("one_minus_beta2 = 1.0 - beta2", "one_minus_beta2 = 1.0001 - beta2"),
    "the noise's sign": ("noise * tl.abs(noise)", "noise * noise"),
}


@pytest.mark.parametrize("fault", KERNEL_FAULTS)
def test_fault_in_the_kernel(fault: str, adamw_stosign: Build, tmp_path: Path) -> None:
    """Only the last witness looks at the kernel."""
    old, new = KERNEL_FAULTS[fault]
    source = adamw_stosign.module.source
    # the Triton half only: between the first @triton.jit and the reference
    begin, end = source.index("@triton.jit"), source.index("def _math_reference")
    kernel = source[begin:end]
    assert kernel.count(old) == 1
    faulty = source[:begin] + kernel.replace(old, new) + source[end:]
    made = replace(adamw_stosign, module=replace(adamw_stosign.module, source=faulty))
    assert all_rows(made, tmp_path) == ALL_AGREE | {KERNEL: False}


@pytest.mark.parametrize("old", ["m", "v"])
def test_fault_in_the_reference(old: str, adamw_stosign: Build, tmp_path: Path) -> None:
    """Reference against kernel, and against the evaluator."""
    source = adamw_stosign.module.source
    at = source.index("def _math_reference")
    weight = {"m": "one_minus_beta1 * g", "v": "one_minus_beta2 * (g * g)"}[old]
    assert source[at:].count(weight) == 1
    faulty = source[:at] + source[at:].replace(weight, f"0.999 * {weight}")
    made = replace(adamw_stosign, module=replace(adamw_stosign.module, source=faulty))
    assert all_rows(made, tmp_path) == ALL_AGREE | {EVALUATOR: False, KERNEL: False}


def heavier(p: Program) -> Program:
    """v's weight 0.998 where the spec says 0.999."""
    hypers = tuple(replace(h, default=0.998) if h.name == "beta2" else h for h in p.hypers)
    return replace(p, hypers=hypers)


def cubed(p: Program) -> Program:
    return map_expressions(p, lambda e: Const(3.0) if e == Const(2.0) else None)


def uncorrected(p: Program) -> Program:
    v = Op("corrected", (Ref("value", "v"),))
    return map_expressions(p, lambda e: Ref("value", "v") if e == v else None)


def coupled(p: Program) -> Program:
    return replace(p, decay=replace(p.decay, kind="l2"))


@pytest.mark.parametrize("fault", [heavier, cubed, uncorrected, coupled])
def test_fault_in_the_spec(fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All code agrees on the wrong algorithm; only the oracle knows the right one."""
    wrong = fault(resolve("adamw"))
    monkeypatch.setattr("signconv.pipeline.chain.resolve", lambda spec: wrong)
    made = build("adamw", convert="stosign", state="fp32")
    assert made.base == wrong
    assert all_rows(made, tmp_path) == ALL_AGREE | {ORACLE: False}


def doubled_sigma(p: Program) -> Program:
    return replace(p, denominator=mul(p.denominator, 2))


def negated(p: Program) -> Program:
    return replace(p, numerator=mul(p.numerator, -1))


@pytest.mark.parametrize("fault", [doubled_sigma, uncorrected, negated])
def test_fault_in_the_pass(fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything after the pass agrees on the wrong program; only the pass's law differs."""
    right = stosign.PASS.apply
    wrong = replace(stosign.PASS, apply=lambda p, options: fault(right(p, options)))
    monkeypatch.setattr(stosign, "PASS", wrong)
    made = build("adamw", convert="stosign", state="fp32")
    assert all_rows(made, tmp_path) == ALL_AGREE | {LAW: False}


def wrong_bias(p: Program, moment: str):
    beta = p.moment(moment).beta
    return sub(1, Op("pow", (beta, add(Ref("t", "t"), 1))))


def wrong_moment(self, m: Moment) -> None:
    """Reads the square of the input's weight."""
    beta = self.element(m.beta, m.name)
    rest = self.element(sub(1, mul(m.beta, m.beta)), m.name)
    made = add(mul(beta, Ref("prev", m.name)), mul(rest, self.element(m.input, m.name)))
    self.math.append(schedule.Statement(m.name, made))


def wrong_power(x, order: int):
    """sign(x) * abs(x)**(order + 1)."""
    for _ in range(order):
        x = mul(x, Op("abs", (x,)))
    return x


LOWERING_FAULTS = {
    "bias correction": ("adamw", None, [(sign_form, "bias", wrong_bias)]),
    "moments": ("adamw", "stosign", [(schedule.Lowerer, "moment", wrong_moment)]),
    "integer powers": (
        "adamw",
        "stosign",
        [(schedule, "lowered_power", lambda x, n: mul(mul(x, x), 1.001))],
    ),
    "the power of the sign form": ("adamw", "stosign", [(sign_form, "signed_power", wrong_power)]),
    "the gain of the sign form": ("adamw", "stosign", [(sign_form, "over", lambda a, b: a)]),
}


@pytest.mark.parametrize("fault", LOWERING_FAULTS)
def test_fault_in_the_lowering(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel and reference are printed from one list, so they agree on the wrong statements."""
    spec, convert, changes = LOWERING_FAULTS[fault]
    for owner, attribute, value in changes:
        monkeypatch.setattr(owner, attribute, value)
    made = build(spec, convert=convert, state="fp32")
    wanted = ALL_AGREE | {EVALUATOR: False}
    if convert is None:
        wanted.pop(LAW)
    assert all_rows(made, tmp_path) == wanted


def printing(monkeypatch: pytest.MonkeyPatch, *who: type, **calls: str) -> None:
    for printer in who:
        names = {fn: f"{_prefix(printer, name)}.{name}" for fn, name in calls.items()}
        monkeypatch.setattr(printer, "calls", printer.calls | names)
        if printer is printers.TritonPrinter:  # the functions put in their place take no CODEC
            monkeypatch.setattr(printer, "by_codec", printer.by_codec - set(calls))


def _prefix(printer: type, name: str) -> str:
    if name == "abs":
        return "torch" if printer is printers.TorchPrinter else "tl"
    return "ref" if printer is printers.TorchPrinter else "dev"


BOTH = (printers.TorchPrinter, printers.TritonPrinter)


@pytest.mark.parametrize(
    ("spec", "convert", "calls"),
    [
        ("adamw", None, {"divisor_sqrt": "abs"}),
        ("adamw", "stosign", {"abs": "sign"}),
        ("rmsprop", None, {"reciprocal": "sign"}),
    ],
)
def test_fault_in_both_printers(
    spec: str, convert: str | None, calls: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same wrong function in kernel and reference: the evaluator shares no printer."""
    printing(monkeypatch, *BOTH, **calls)
    wanted = ALL_AGREE | {EVALUATOR: False}
    if convert is None:
        wanted.pop(LAW)
    assert all_rows(build(spec, convert=convert, state="fp32"), tmp_path) == wanted


def test_fault_in_one_printer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printing(monkeypatch, printers.TritonPrinter, divisor_sqrt="abs")
    wanted = ALL_AGREE | {KERNEL: False}
    wanted.pop(LAW)
    assert all_rows(build("adamw", state="fp32"), tmp_path) == wanted


# ---------------------------------------------------------------- a weak test says so


def test_too_few_states_are_reported(tmp_path: Path) -> None:
    """Agreement on idle parameters and few codes proves nothing."""
    cls = class_of(build("adamw", state="fp8"), tmp_path)
    p = torch.zeros(64, requires_grad=True)
    optimizer = cls([p], backend="reference")
    p.grad = torch.zeros(64)
    optimizer.step()
    problems = bits._weak(cls, optimizer, [p], {"up": 3, "down": 0}, 0.5, torch.bfloat16)
    text = "; ".join(problems)
    assert re.search("m has only 1 distinct values", text)
    assert re.search("v has only 1 distinct values", text)
    assert re.search("rounded up 3 times, down 0 times", text)
    assert re.search("only 50% of the parameters moved", text)


def test_a_moment_of_few_numbers_has_to_show_all() -> None:
    """Rprop keeps signs: three numbers by its spec, which need no rounding."""
    found = []
    for grad in (torch.zeros(64), torch.arange(64.0), torch.arange(-32.0, 32.0)):
        p = torch.zeros(64, requires_grad=True)
        optimizer = Rprop([p], backend="reference")
        p.grad = grad
        optimizer.step()
        found.append(bits._weak(Rprop, optimizer, [p], {"up": 0, "down": 0}, 1.0, torch.float32))
    signs = [[x for x in problems if "last_sign" in x] for problems in found]
    words = "last_sign has only {} distinct values"
    assert signs == [[words.format(1)], [words.format(2)], []]
    assert not any("rounded" in x for x in found[0])


def test_few_codes_show_through_many_scales() -> None:
    """Values count with the scales of their blocks, but a block has to have several codes too."""
    p = torch.zeros(90, 64, requires_grad=True)
    optimizer = SGD([p], backend="reference")
    p.grad = torch.ones(90, 64) * 2.0 ** torch.arange(90.0)[:, None]
    optimizer.step()
    slot = SGD.program.moments[0]
    assert bits._distinct(optimizer, [p], slot) == (1, 90)
    (few, *_) = bits._weak(SGD, optimizer, [p], {"up": 1, "down": 1}, 1.0, torch.float32)
    assert few == f"{slot.name} has only 1 distinct codes"


def compared(cls: type, dtype: torch.dtype) -> Row:
    """The reference with itself: what the comparison says of its own training."""
    return bits.compare(cls, dtype, "cpu", 1, backend="reference", chunk=512, warm_up=10)


def test_lr_rises_until_the_parameters_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adadelta's first steps are thousandths of lr, which bf16 parameters do not show."""
    assert compared(Adadelta, torch.bfloat16).ok
    monkeypatch.setattr(bits, "RISE", 1.0)
    row = compared(Adadelta, torch.bfloat16)
    assert row.ok is None and "of the parameters moved" in row.detail


def test_lr_rises_to_where_the_spec_ends_it(tmp_path: Path) -> None:
    """Beyond, the step would refuse it."""
    head = HEAD.replace("ge=0", "ge=0, lt=1.5")
    spec = spec_file(tmp_path, "numerator = grad * 0", head).spec
    row = compared(class_of(build(spec), tmp_path), torch.bfloat16)
    assert row.ok is None and "only 0% of the parameters moved" in row.detail


def test_a_module_that_differs_from_the_compiler_is_reported(tmp_path: Path) -> None:
    made = build("sgd", convert="stosign")
    path, _ = write(made.module, tmp_path)
    path.write_text(made.module.source + "\n# edited\n")
    rows = list(differential.verify(differential.from_module(path), path, DEVICE, steps=1))
    by_witness = {r.witness: r for r in rows}
    assert by_witness["file - compiler"].ok is False
    assert by_witness["reference - kernel"].ok


def test_pass_rows_run_in_the_order_of_history() -> None:
    base = resolve("adamw")
    after = apply_passes(base, requests_of("stosign:eps=keep"))
    (row,) = witnesses.pass_rows(base, after.history)
    assert (row.witness, row.subject, row.ok) == (LAW, "stosign:eps=keep", True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_bits_differ_where_a_zero_has_another_sign_and_not_between_nans(dtype: torch.dtype) -> None:
    nan = float("nan")
    a = torch.tensor([0.0, nan, 1.0, -0.0, nan, nan], dtype=dtype)
    b = torch.tensor([-0.0, -nan, 1.0, -0.0, 1.0, nan], dtype=dtype)
    assert bits.different(a, b) == 2
