"""What ``import signconv`` gives: classes or names in, one order of options, types, pickles."""

import copy
import inspect
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from signconv.generated.sgd_stosign import SGDStoSign

import signconv
from signconv import pipeline
from signconv.dsl import Optimizer, ema, grad, hyper
from signconv.pipeline import resolve
from signconv.runtime.optimizer import FusedOptimizer
from signconv.specs.adamw import AdamW
from signconv.verification import differential
from signconv.verification.report import Report, Row
from tests.support import ROOT, environment, python, spec_file


class Momentum(Optimizer):
    """A user's class: it stands in this file and nobody has registered it."""

    lr = hyper(1e-2, ge=0)
    beta = hyper(0.9, ge=0, lt=1)
    m = ema(grad, beta)
    numerator = m


MOMENTUM = f"{__file__}:Momentum"
BODY = "m = ema(grad, 0.9)\nnumerator = m"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIGNCONV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stepped(cls: Any, steps: int = 2) -> Any:
    """An optimizer of this class with state."""
    p = torch.ones(64, requires_grad=True)
    made = cls([p], backend="reference")
    for _ in range(steps):
        p.grad = torch.linspace(-1, 1, 64)
        made.step()
    return made


def moments(optimizer: Any) -> list[torch.Tensor]:
    (entry,) = optimizer.state.values()
    return [entry[k] for k in sorted(entry)]


# ---------------------------------------------------------------- exports


def test_every_export_is_listed_and_is_there() -> None:
    assert sorted(signconv.__all__) == signconv.__all__
    assert set(signconv.__all__) <= set(dir(signconv))
    assert set(signconv._HOME) | {"__version__"} == set(signconv.__all__)
    assert all(getattr(signconv, name) is not None for name in signconv.__all__)
    with pytest.raises(AttributeError, match="no attribute 'compiel'"):
        signconv.compiel  # noqa: B018


def test_dir_loads_nothing() -> None:
    done = python("-c", "import sys, signconv; dir(signconv); print('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_options_are_keywords_in_one_order() -> None:
    order = ["convert", "state", "math", "name"]
    for function in (signconv.compile, signconv.build, signconv.verify):
        (_, *options) = inspect.signature(function).parameters.values()
        assert [p.name for p in options][:4] == order, function
        assert all(p.kind is p.KEYWORD_ONLY for p in options)
    options = inspect.signature(signconv.verify).parameters
    assert list(options)[5:7] == ["device", "steps"]


SNIPPET = """\
import torch
from torch import nn
import signconv
from signconv.dsl import Optimizer, ema, grad, hyper

class Mine(Optimizer):
    lr = hyper(1e-2, ge=0)
    m = ema(grad, 0.9)
    numerator = m

model = nn.Linear(2, 2)
cls = signconv.compile(Mine, convert="stosign", state="bf16", math="fp32", name="My")
optimizer = cls(signconv.cast(model).parameters(), 1e-2, weight_decay=0.1, betas=(0.9, 0.99))
signconv.build("adamw").write("folder").read_text()
ok: bool = signconv.verify(cls, device="cpu", steps=1).ok
signconv.gradient_release(optimizer).remove()
reveal_type(signconv.compile)
reveal_type(signconv.build)
reveal_type(signconv.verify)
reveal_type(signconv.cast)
reveal_type(signconv.gradient_release)
reveal_type(signconv.inspect)
reveal_type(signconv.inspect(optimizer))
reveal_type(cls)
reveal_type(optimizer)
signconv.compile("adamw", "stosign")  # refused: options are keywords
signconv.compile(3)  # refused: describes no optimizer
"""


@pytest.mark.long
def test_a_type_checker_sees_the_exports(tmp_path: Path) -> None:
    path = tmp_path / "snippet.py"
    path.write_text(SNIPPET)
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--no-pretty"]
    done = python("-m", "mypy", *config, str(path), timeout=500)  # strict, by pyproject.toml
    lines = [x for x in done.stdout.splitlines() if x.startswith(str(path)) or "snippet.py" in x]
    revealed = [x for x in lines if "Revealed type" in x]
    errors = [x for x in lines if ": error:" in x]
    assert len(revealed) == 9, done.stdout + done.stderr
    assert not [x for x in revealed if "Any" in x], revealed
    assert len(errors) == 2, errors
    assert "Too many positional arguments" in errors[0] and "incompatible type" in errors[1]


# ---------------------------------------------------------------- a class instead of a name


def test_a_class_is_built_as_its_file_is() -> None:
    by_class = signconv.build(Momentum, convert="stosign", state="bf16")
    by_file = signconv.build(MOMENTUM, convert="stosign", state="bf16")
    assert by_class.module == by_file.module
    assert f"signconv build {Path(__file__).name}:Momentum" in by_class.module.source
    assert str(Path(__file__).parent) not in by_class.module.source


def test_a_built_in_class_is_its_name() -> None:
    assert signconv.build(AdamW).module == signconv.build("adamw").module
    assert resolve(AdamW) == resolve("adamw")


def test_a_compiled_class_steps() -> None:
    cls = signconv.compile(Momentum, state="fp32", name="Mine")
    assert cls.__name__ == "Mine" and issubclass(cls, FusedOptimizer)
    p = torch.ones(4, requires_grad=True)
    p.grad = torch.ones(4)
    cls([p], lr=1.0, beta=0.5).step()
    assert torch.equal(p.detach(), torch.full((4,), 0.5))


def local(size: float = 1.0) -> type[Optimizer]:
    class Local(Optimizer):
        lr = hyper(1e-2, ge=0)
        m = ema(grad, 0.9)
        numerator = size * m

    return Local


def test_a_class_in_a_function_says_so() -> None:
    made = signconv.build(local(), convert="stosign", state="bf16", name="Mine")
    command = 'signconv.build(Local, convert="stosign", state="bf16", name="Mine").write(folder)'
    assert f"    {command}  # a class in a function\n" in made.module.source
    assert made.spec == "<function>:Local"
    assert "signconv build" not in made.module.source
    cls = signconv.compile(local())
    other = signconv.compile(local(-1.0))
    assert cls is not other and cls.program.hash != other.program.hash


def test_a_class_of_a_notebook_says_so() -> None:
    """A cell is compiled under a file name that does not exist."""
    cell = (
        "from signconv.dsl import Optimizer\nclass Mine(Optimizer):\n    lr = hyper(1e-2, ge=0)\n"
    )
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(cell + "    numerator = grad\n", "/tmp/ipykernel_7/12345.py", "exec"), space)
    made = signconv.build(space["Mine"])
    assert made.spec == "<no file>:Mine"
    assert "signconv.build(Mine).write(folder)  # a class without a file\n" in made.module.source
    assert "ipykernel" not in made.module.source


def test_build_writes(tmp_path: Path) -> None:
    made = signconv.build("sgd")
    path = made.write(str(tmp_path / "new"))
    assert path == tmp_path / "new" / "sgd.py"
    assert path.read_text() == made.module.source


@pytest.mark.parametrize("spec", [3, None, Optimizer, dict, SGDStoSign, resolve("sgd")])
def test_what_describes_no_optimizer_is_refused(spec: Any) -> None:
    for function in (signconv.build, signconv.compile):
        with pytest.raises(signconv.errors.SpecError, match="SC101"):
            function(spec)


# ---------------------------------------------------------------- verify


def test_verify_of_a_class_returns_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """All witnesses; the kernel's process, which test_generated.py starts, is played."""
    kernel = Row("reference - kernel", "", None, "not in this test")
    monkeypatch.setattr(differential, "kernel_rows", lambda *_: [kernel])
    report = signconv.verify(Momentum, device="cpu", steps=1)
    assert report.ok and bool(report)
    assert report.subject == "Momentum"
    witnesses = [row.witness for row in report]
    assert {"oracle - evaluator", "evaluator - reference"} <= set(witnesses)
    assert witnesses[-1] == "reference - kernel"
    text = str(report)
    assert text.startswith("Momentum on cpu")
    assert all(re.search(rf"│ {re.escape(w)} +│", text) for w in witnesses)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differential, "kernel_rows", lambda *_: [])
    monkeypatch.setattr(differential, "cpu_rows", lambda *_: [])


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("spec", [Momentum, "sgd", local()], ids=["class", "name", "function"])
def test_verify_of_a_compiled_class(spec: Any) -> None:
    """What it was compiled from is known, even where no file can say it."""
    cls = signconv.compile(spec, convert="stosign", state="bf16", name="Other")
    report = signconv.verify(cls)
    (row,) = [row for row in report if row.witness == "file - compiler"]
    assert row.ok and row.detail == "what the compiler emits now"
    assert report.subject == "Other"


@pytest.mark.usefixtures("without_kernels")
def test_verify_of_a_generated_class_or_file(tmp_path: Path) -> None:
    report = signconv.verify(SGDStoSign)
    assert report.ok and report.subject == "SGDStoSign"
    assert "file - compiler" in [row.witness for row in report]
    named = signconv.build("sgd", name="Mine").write(tmp_path)
    assert signconv.verify(str(named)).ok
    named.write_text(named.read_text() + "# edited\n")
    assert not signconv.verify(str(named))


def test_a_report_is_true_unless_a_check_failed() -> None:
    ok, unknown, bad = (Row("a [b]", "", x, "[red]") for x in (True, None, False))
    assert Report("X", "cpu", (ok, unknown))
    assert not Report("X", "cpu", (ok, unknown, bad))
    assert "FAILED" in str(Report("X", "cpu", (bad,)))
    assert "[red]" in str(Report("X", "cpu", (ok,)))


# ---------------------------------------------------------------- copies and pickles


@pytest.mark.parametrize("spec", [Momentum, MOMENTUM, "sgd"], ids=["class", "file", "name"])
def test_class_and_instance_pickle(spec: Any) -> None:
    cls = signconv.compile(spec, convert="stosign")
    one = stepped(cls)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(cls, protocol)) is cls
        two = pickle.loads(pickle.dumps(one, protocol))
        assert type(two) is cls
        assert all(torch.equal(a, b) for a, b in zip(moments(one), moments(two)))
    assert copy.copy(cls) is cls and copy.deepcopy(cls) is cls
    assert type(copy.copy(one)) is cls and type(copy.deepcopy(one)) is cls


def test_a_local_class_is_copied_but_not_pickled() -> None:
    one = stepped(signconv.compile(local()))
    two = copy.deepcopy(one)
    assert type(two) is type(one)
    assert all(torch.equal(a, b) for a, b in zip(moments(one), moments(two)))
    with pytest.raises(signconv.errors.SpecError, match=r"save state_dict\(\) \[SC508\]"):
        pickle.dumps(one)


Derived: Any = None


def test_a_class_derived_from_a_compiled_one_pickles_as_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = signconv.compile("sgd")
    derived = type(base)("Derived", (base,), {"__module__": __name__})
    monkeypatch.setitem(globals(), "Derived", derived)
    assert pickle.loads(pickle.dumps(derived)) is derived
    assert type(pickle.loads(pickle.dumps(stepped(derived)))) is derived


def test_a_pickle_keeps_its_meaning_where_the_spec_was_edited(tmp_path: Path) -> None:
    """This process has the old class; another refuses, and takes it where the spec is back."""
    spec = spec_file(tmp_path, BODY).spec
    one = stepped(signconv.compile(spec))
    text = tmp_path / "one.pickle"
    text.write_bytes(pickle.dumps(one))
    load = f"import pickle; o = pickle.load(open({str(text)!r}, 'rb')); print(type(o).__name__)"
    for body, loads in ((BODY, True), (BODY.replace("0.9", "0.5"), False), (BODY + "  #", True)):
        spec_file(tmp_path, body)
        assert type(pickle.loads(text.read_bytes())) is type(one)
        assert type(copy.deepcopy(one)) is type(one)
        done = python("-c", load, SIGNCONV_CACHE=os.environ["SIGNCONV_CACHE"])
        if loads:
            assert done.stdout == "Mine\n", done.stderr
        else:
            last = done.stderr.strip().splitlines()[-1]
            assert "mine.py:Mine has changed since this was pickled" in last and "[SC509]" in last


SPAWN = """\
import multiprocessing, signconv, torch
from signconv.dsl import Optimizer, ema, grad, hyper

class Mine(Optimizer):
    lr = hyper(1e-2, ge=0)
    m = ema(grad, 0.9)
    numerator = m

def work(cls, optimizer):
    return cls.program.hash, type(optimizer) is cls, len(optimizer.state), cls.program.spec

if __name__ == "__main__":
    cls = signconv.compile(Mine, convert="stosign")
    p = torch.ones(8, requires_grad=True)
    p.grad = torch.ones(8)
    optimizer = cls([p])
    optimizer.step()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(work, (cls, optimizer))
    assert got == (cls.program.hash, True, 1, "script.py:Mine"), got
    print("same")
"""


def test_a_class_of_a_script_goes_through_spawn(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SPAWN)
    done = python(str(tmp_path / "script.py"), SIGNCONV_CACHE=os.environ["SIGNCONV_CACHE"])
    assert done.stdout == "same\n", done.stderr


# ---------------------------------------------------------------- one module, many callers


def test_no_thread_sees_half_a_module() -> None:
    found: list[Any] = []
    ready = threading.Barrier(8)

    def work() -> None:
        ready.wait()
        try:
            found.append(signconv.compile("sgd", convert="stosign", name="Threaded"))
        except BaseException as error:
            found.append(error)

    for _ in range(4):
        found.clear()
        for name in [n for n in sys.modules if n.startswith("signconv_cache.threaded")]:
            del sys.modules[name]
        threads = [threading.Thread(target=work) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(found) == 8 and {str(x) for x in found} == {str(found[0])}
        assert len({id(x) for x in found}) == 1
        assert found[0].__name__ == "Threaded"


def test_specs_of_one_name_that_differ_in_a_default(tmp_path: Path) -> None:
    """In one cache, and after another process has written the first again."""
    specs = []
    for lr in ("1e-3", "5.0"):
        (tmp_path / lr).mkdir()
        head = f"from signconv.dsl import Optimizer\nclass Mine(Optimizer):\n    lr = hyper({lr})\n"
        specs.append(spec_file(tmp_path / lr, "numerator = grad", head=head).spec)
    a, b = (signconv.compile(s) for s in specs)
    again = f"import signconv; signconv.compile({specs[0]!r})"
    done = python("-c", again, SIGNCONV_CACHE=os.environ["SIGNCONV_CACHE"])
    assert done.returncode == 0, done.stderr
    p = torch.zeros(1, requires_grad=True)
    assert [c([p]).defaults["lr"] for c in (a, b, signconv.compile(specs[0]))] == [1e-3, 5.0, 1e-3]


# ---------------------------------------------------------------- files of release 0.1

HEAD_OF_0_1 = '''\
"""AdamW, FP8 state.

Generated by signconv; do not edit, rebuild:

    signconv build adamw
"""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from signconv.runtime import device_ops as dev
from signconv.runtime import torch_ops as ref
from signconv.runtime.compat import tl, triton
'''


def test_a_file_of_release_0_1_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "adamw.py"
    path.write_text(HEAD_OF_0_1)
    done = subprocess.run(
        [sys.executable, str(path)], env=environment(), capture_output=True, text=True
    )
    assert done.stderr.strip().splitlines()[-1] == (
        "ImportError: this file was generated by signconv 0.1: rebuild it with the command in its "
        "docstring [SC611]"
    )
    with pytest.raises(ImportError, match="SC611"):
        from signconv.runtime import torch_ops  # noqa: F401
    with pytest.raises(signconv.errors.VerifyError, match=r"cannot be loaded: ImportError.*SC611"):
        signconv.verify(str(path))
    with pytest.raises(AttributeError, match="no attribute 'tensor_ops'"):
        sys.modules["signconv.runtime"].tensor_ops  # noqa: B018


def test_the_top_level_holds_entry_points_and_what_several_parts_share() -> None:
    files = {p.name for p in Path(pipeline.__file__).parents[1].iterdir() if p.is_file()}
    assert files == {
        "__init__.py", "__main__.py", "cli.py", "cli_options.py", "errors.py", "pictures.py",
        "py.typed", "terminal.py",
    }  # fmt: skip
