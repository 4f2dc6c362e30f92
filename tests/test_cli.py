"""The command line: what works, and one clear line with exit code 2 for whatever does not."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from signconv.errors import BuildError
from signconv.pipeline import build, builtin_names, resolve
from signconv.pipeline.catalogue import GENERATED, Entry
from tests.support import HEAD, python, spec_file
from tests.support.command import Done, Run
from tests.support.entries import CORE, marks, path_of


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, hidden ones too."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts:
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return found


def assert_one_line(done: Done, message: str) -> None:
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.count("\n") == 1 and done.err.endswith("\n"), done.err
    assert done.err.startswith("signconv: ")
    assert "Traceback" not in done.err
    assert re.search(message, done.err), done.err


# ---------------------------------------------------------------- bad input

BAD = {
    # commands and options
    "unknown command": ("biuld adamw", "No such command 'biuld'.*build"),
    "unknown option": ("build adamw --covert stosign", "--covert.*--convert"),
    "missing argument": ("show", "(?i)missing argument 'spec'"),
    "neither spec nor all": ("build", "give either SPEC or --all"),
    "spec and all": ("build adamw --all", "give either SPEC or --all"),
    "two specs": ("build adamw sgd", "unexpected extra argument"),
    "option without value": ("build adamw --convert", "--convert.* requires an argument"),
    "unknown state": ("build adamw --state fp9", "state format 'fp9'; did you mean 'fp8'.*bf16"),
    "no such moment": ("build adamw --state w=fp8", "AdamW has no moment 'w'; valid: m, v"),
    "unknown format": ("show adamw --format txt", "'txt' is not .*text"),
    "unknown device": ("verify adamw --device gpu", "'gpu' is not one of 'auto', 'cpu', 'cuda'"),
    "steps not a number": ("verify adamw --steps many", "--steps.*valid integer"),
    "steps too few": ("verify adamw --steps 0", "--steps.*(range x>=1|greater than or equal to 1)"),
    # bench: everything is checked before anything is measured
    "bench, no spec": ("bench", "(?i)missing argument"),
    "bench, unknown spec": ("bench sgd adamww", "did you mean 'adamw'"),
    "bench, unknown pass": ("bench sgd+stosing", "unknown pass 'stosing'"),
    "bench, unknown modifier": ("bench sgd@fp9", "unknown @fp9; .*fp8-raw"),
    "bench, unknown workload": ("bench sgd --workload A,X", "unknown workload 'X'; valid: A, B"),
    "bench, unknown peer": ("bench sgd --peer torhc", "unknown peer 'torhc'; .*torch AdamW fused"),
    "bench, chart of no kind": ("bench sgd --chart c.txt", r"name ends in \.png"),
    "bench, record in a file": (
        "bench sgd --quick --device cpu --json good.py/r.json",
        r"cannot write good\.py/r\.json",
    ),
    "bench, chart in a file": ("bench sgd --chart good.py/c.png", r"cannot write good\.py/c\.png"),
    # specs
    "unknown spec": ("build adamww", "unknown optimizer 'adamww'; did you mean 'adamw'"),
    "unknown spec, show": ("show adamw_", "did you mean 'adamw'"),
    "unknown spec, verify": ("verify lino", "did you mean 'lion'"),
    "spec in capitals": ("build AdamW", "did you mean 'adamw'"),
    "empty spec": (["build", ""], "unknown optimizer ''"),
    "missing file": ("build nothing.py:Mine", "there is no file 'nothing.py'"),
    "folder as file": ("build folder.py:Mine", "there is no file 'folder.py'"),
    "class not in file": ("build good.py:Mime", "defines no optimizer 'Mime'; did you mean 'Mine'"),
    "file without class": ("build good.py", "name the optimizer in it: good.py:Mine"),
    "no name after the colon": ("build good.py:", "after the colon comes the name"),
    "missing module": ("build no_such.module:Mine", "there is no module 'no_such'"),
    "nothing before the colon": ("build :Mine", "module"),
    "relative module": ("build ..specs:Mine", "relative|module"),
    # passes
    "unknown pass": ("build adamw --convert stosing", "unknown pass 'stosing'; did you mean 'stos"),
    "unknown pass option": ("show adamw --convert stosign:ep=1", "no option 'ep=1'; it takes: eps"),
    "pass twice": ("build adamw --convert stosign,stosign", "asked for twice"),
    "trailing comma": ("build adamw --convert stosign,", "unknown pass ''"),
    # class names
    "name no identifier": ("build adamw --name 1st", "--name '1st' is not a class name"),
    "name a path": ("build adamw --name ../up", "'../up' is not a class name"),
    "name not ASCII": ("build adamw --name Größe", "is not a class name"),
    "name empty": (["build", "adamw", "--name", ""], "is not a class name"),
    "name a keyword": ("build adamw --name class", "'class' is not a class name"),
    # faults in the user's file: its name and line
    "syntax error": ("build syntax.py:Mine", r"syntax\.py:2: syntax error"),
    "undefined symbol": ("show undefined.py:Mine", r"undefined\.py:6: .*did you mean 'grad'"),
    "cycle": ("build cycle.py:Mine", r"cycle\.py:6: cycle: a -> b -> a"),
    "truth": ("build truth.py:Mine", r"truth\.py:6: .*no truth value"),
    "name clash": ("build clash.py:Mine", r"clash\.py:6: 'grad' is a name of the DSL"),
    "error in the file": ("build raises.py:Mine", r"raises\.py:1: ZeroDivisionError"),
    "error of two lines": ("build lines.py:Mine", r"lines\.py:1: ValueError: one"),
    "file that exits": ("build exits.py:Mine", r"exits\.py:2"),
    "file not UTF-8": ("build latin.py:Mine", r"latin\.py"),
    "module raises": ("build raises:Mine", r"raises\.py:1: ZeroDivisionError"),
    "cannot be lowered": ("build twice.py:Mine --math bf16", "bf16 does not go with norm"),
    # verify of modules
    "module missing": ("verify nothing.py", "nothing.py"),
    "module without optimizer": ("verify good.py", "good.py defines no generated optimizer"),
    "module with convert": ("verify good.py --convert stosign", "leave out --convert"),
    "module with a syntax error": ("verify syntax.py", r"syntax\.py"),
    "module that raises": ("verify raises.py", r"raises\.py"),
    "module of a lost spec": ("verify orphan.py", "'gone.py:Mine'.* no file"),
}

FILES = {
    "good.py": HEAD + "    numerator = grad\n",
    "syntax.py": "x = 1\ny = = 2\n",
    "undefined.py": HEAD + "    numerator = gradd\n",
    "cycle.py": HEAD + "    a, b = state(), state()\n    a.next = b\n    b.next = a + grad\n"
    "    numerator = a\n",
    "truth.py": HEAD + "    numerator = where(0 < grad < 1, 1, grad)\n",
    "clash.py": HEAD + "    grad = 3\n",
    "raises.py": "x = 1 / 0\n",
    "lines.py": "raise ValueError('one\\ntwo')\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "twice.py": HEAD + "    numerator = grad / norm(grad * norm(grad))\n",
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "latin.py").write_bytes(b"# caf\xe9\n")
    (folder / "folder.py").mkdir()
    orphan = build(spec_file(folder, "numerator = grad", name="gone.py").spec).module.source
    (folder / "gone.py").unlink()
    (folder / "orphan.py").write_text(orphan)
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case: str, run: Run, faulty: Path) -> None:
    command, message = BAD[case]
    before = snapshot(faulty)
    done = run(*(command.split() if isinstance(command, str) else command), cwd=faulty)
    assert_one_line(done, message)
    assert snapshot(faulty) == before


@pytest.mark.parametrize("extra", ["--state fp32", "--convert stosign", "--name Mine"])
def test_all_takes_no_choice_of_its_own(extra: str, run: Run, tmp_path: Path) -> None:
    done = run("build", "--all", *extra.split(), "--out", tmp_path)
    assert_one_line(done, "--all")
    assert snapshot(tmp_path) == {}


def test_really_as_a_shell_would() -> None:
    done = python("-m", "signconv", "build", "adamww")
    assert_one_line(Done(done.returncode, done.stdout, done.stderr), "did you mean 'adamw'")


# ---------------------------------------------------------------- folders that cannot be written


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_unwritable_folder_leaves_nothing_behind(below: str, run: Run, tmp_path: Path) -> None:
    """Below a regular file, which stops root too."""
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / below if below else tmp_path / "file"
    before = snapshot(tmp_path)
    assert_one_line(run("build", "adamw", "--out", out), r"cannot write .*file")
    assert snapshot(tmp_path) == before


def test_target_that_is_a_folder(run: Run, tmp_path: Path) -> None:
    """The temporary file is written before the rename fails, and removed again."""
    (tmp_path / "adamw.py").mkdir()
    before = snapshot(tmp_path)
    assert_one_line(run("build", "adamw", "--out", tmp_path), r"cannot write .*adamw\.py")
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_out_is_a_device(run: Run) -> None:
    assert_one_line(run("build", "adamw", "--out", "/dev/full"), "cannot write")


@pytest.mark.parametrize("there", [b"\xff\xfe", b"x = 1\n"], ids=["no text", "a module"])
def test_a_file_that_signconv_did_not_write_stays(there: bytes, run: Run, tmp_path: Path) -> None:
    (tmp_path / "adamw.py").write_bytes(there)
    checked = run("build", "adamw", "--out", tmp_path, "--check")
    assert (checked.code, "Traceback" in checked.err) == (1, False)
    assert_one_line(run("build", "adamw", "--out", tmp_path), "adamw.py is there already.*SC316")
    with pytest.raises(BuildError, match="SC316"):
        build("adamw").write(tmp_path)
    assert snapshot(tmp_path) == {"adamw.py": there}


def test_a_build_beside_its_spec_does_not_replace_it(run: Run, tmp_path: Path) -> None:
    """Mine in mine.py is built into mine.py."""
    spec = spec_file(tmp_path, "numerator = grad")
    before = snapshot(tmp_path)
    assert_one_line(run("build", spec.spec, "--out", tmp_path), "mine.py is there already.*SC316")
    assert snapshot(tmp_path) == before


def test_an_empty_file_and_an_edited_module_are_replaced(run: Run, tmp_path: Path) -> None:
    path, source = tmp_path / "adamw.py", build("adamw").module.source
    for there in ("", source + "# edited"):
        path.write_text(there)
        assert run("build", "adamw", "--out", tmp_path).code == 0
        assert path.read_text() == source


# ---------------------------------------------------------------- what works


def test_build_writes_one_file(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    done = run("build", "adamw", "--convert", "stosign", "--out", out)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"adamw_stosign\.py written: class AdamWStoSign, fp8 state\n$", done.out)
    source = build("adamw", convert="stosign").module.source
    assert snapshot(out) == {"adamw_stosign.py": source.encode()}
    assert (out / "adamw_stosign.py").stat().st_mode & 0o777 == 0o644
    stamp = (out / "adamw_stosign.py").stat().st_mtime_ns
    again = run("build", "adamw", "--convert", "stosign", "--out", out)
    assert "unchanged" in again.out
    assert (out / "adamw_stosign.py").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("arguments", "file", "cls"),
    [
        ("adamw", "adamw.py", "AdamW"),
        ("adamw --state fp32", "adamw_fp32.py", "AdamWFP32"),
        ("adamw --state bf16", "adamw_bf16.py", "AdamWBF16"),
        ("sgd --convert stosign", "sgd_stosign.py", "SGDStoSign"),
        ("adamw --convert stosign:eps=keep", "adamw_stosignepskeep.py", "AdamWStoSignEpsKeep"),
        ("adamw --convert stosign --state fp32", "adamw_stosign_fp32.py", "AdamWStoSignFP32"),
        ("lion --name MyLion2", "my_lion2.py", "MyLion2"),
        ("{mine}", "mine.py", "Mine"),
    ],
)
def test_names_of_file_and_class(
    arguments: str, file: str, cls: str, run: Run, tmp_path: Path
) -> None:
    """Every choice that is not the default enters both, so that builds never overwrite others."""
    mine = spec_file(tmp_path, "numerator = grad").spec
    out = tmp_path / "out"
    done = run("build", *arguments.format(mine=mine).split(), "--out", out)
    assert done.code == 0, done.err
    assert list(snapshot(out)) == [file]
    assert f"\nclass {cls}(FusedOptimizer):\n" in (out / file).read_text()


def test_the_command_in_the_file_makes_the_file(run: Run, tmp_path: Path) -> None:
    run("build", "lion", "--name", "Mine", "--state", "bf16", "--convert", "stosign",
        "--out", tmp_path / "a")  # fmt: skip
    source = (tmp_path / "a" / "mine.py").read_text()
    (command,) = re.findall(r"^    signconv (build .*)$", source, re.MULTILINE)
    run(*command.split(), "--out", tmp_path / "b")
    assert snapshot(tmp_path / "b") == snapshot(tmp_path / "a")


def test_build_all(run: Run, tmp_path: Path) -> None:
    done = run("build", "--all", "--out", tmp_path)
    assert done.code == 0, done.err
    assert snapshot(tmp_path) == {p.name: p.read_bytes() for p in map(path_of, GENERATED)}


def test_check(run: Run, tmp_path: Path) -> None:
    arguments = ("build", "sgd", "--out", tmp_path)
    missing = run(*arguments, "--check")
    assert (missing.code, snapshot(tmp_path)) == (1, {})
    run(*arguments)
    fine = run(*arguments, "--check")
    assert (fine.code, fine.err) == (0, "")
    assert "is up to date" in fine.out
    path = tmp_path / "sgd.py"
    edited = path.read_text().replace("SGD", "XYZ", 1)
    path.write_text(edited)
    done = run(*arguments, "--check")
    assert done.code == 1
    assert re.search(r"^--- .*sgd\.py$", done.out, re.MULTILINE)
    assert re.search(r"^-.*XYZ", done.out, re.MULTILINE)
    assert re.search(r"^\+.*SGD", done.out, re.MULTILINE)
    assert path.read_text() == edited


def test_check_of_the_checkout(run: Run) -> None:
    """As CI would ask: the committed files are what the compiler emits."""
    done = run("build", "--all", "--check")
    assert done.code == 0, done.out[:2000]


@pytest.mark.parametrize(
    "spec", [pytest.param(n, marks=marks(Entry(n) in CORE)) for n in builtin_names()]
)
def test_show(spec: str, run: Run) -> None:
    done = run("show", spec)
    assert (done.code, done.err) == (0, "")
    last = "stepped = p - " if resolve(spec).new_param is not None else "p = p - "
    for words in (last, "Hyperparameters", "lr = ", "State, bytes per parameter", "Passes:"):
        assert words in done.out


def test_show_converted_says_what_changed(run: Run) -> None:
    done = run("show", "adamw", "--convert", "stosign", "--state", "fp32")
    assert done.code == 0
    for words in ("sign(m.corrected + sqrt(v.corrected) * noise)", "lr = 0.001", "eps: removed",
                  "Defaults: as they were", "8.000  in all", "Passes: stosign"):  # fmt: skip
        assert words in done.out


def test_show_brackets_are_not_markup(run: Run, tmp_path: Path) -> None:
    """Rich would swallow [bold] in a docstring."""
    head = HEAD.replace("    lr", '    """Keeps [bold] brackets."""\n\n    lr')
    spec = spec_file(tmp_path, "numerator = grad", head).spec
    assert "[bold]" in run("show", spec).out


def test_list(run: Run) -> None:
    done = run("list")
    assert (done.code, done.err) == (0, "")
    for name in (*builtin_names(), "stosign", "eps=keep|drop", "noise="):
        assert name in done.out


def test_doctor(run: Run) -> None:
    done = run("doctor")
    assert (done.code, done.err) == (0, "")
    for words in ("Python", "PyTorch", "Triton", "GPU", "reference", "cache folder"):
        assert words in done.out


def test_verify_fails_where_a_row_does(run: Run, tmp_path: Path) -> None:
    """One table row per check; exit code 1 where a row failed.  (0 where none did: the commands of
    the README, in tests/docs.)"""
    source = build("sgd").module.source
    kernel = source.index("def _math(")
    wrong = source[:kernel] + source[kernel:].replace("* g, CODEC)", "* 1.001 * g, CODEC)", 1)
    assert wrong != source
    (tmp_path / "wrong.py").write_text(wrong)
    done = run("verify", tmp_path / "wrong.py", "--steps", "1", "--device", "cpu")
    assert done.code == 1
    assert re.search(r"reference - kernel.*FAILED", done.out)
    assert re.search(r"file - compiler.*FAILED", done.out)
    assert re.search(r"evaluator - reference.*ok", done.out)
    assert "oracle - evaluator" in done.out


def test_bench(run: Run, tmp_path: Path) -> None:
    """A table, a record with the command as typed, a chart; progress as plain lines."""
    record, picture = tmp_path / "r.json", tmp_path / "c.png"
    options = ["--quick", "--device", "cpu", "--workload", "A"]
    options += ["--json", record, "--chart", picture]
    done = run("bench", "sgd@bf16", *options, "--peer", "HeavyBall AdamW")
    assert done.code == 0, done.out + done.err
    kept = json.loads(record.read_text())
    words = "bench sgd@bf16 --quick --device cpu --workload A --json r.json --chart c.png --peer"
    assert kept["command"] == f"signconv {words} 'HeavyBall AdamW'"
    assert str(tmp_path) not in record.read_text()
    labels = [r["label"] for r in kept["rows"]]
    assert labels == ["sgd@bf16", "adamw@bf16", "adamw", "HeavyBall AdamW"]
    assert [line.split(":")[0] for line in done.err.splitlines()] == [f"A {x}" for x in labels]
    for word in ("sgd@bf16", "of a copy", "HeavyBall AdamW", "peers"):
        assert word in done.out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["build", "show", "verify", "bench", "convert-state", "list", "doctor"]),
        (["build", "--help"], ["--convert", "--state", "--out", "--name", "--check", "--all"]),
        (["build", "--help"], ["exit 1 with a diff"]),
        (["show", "--help"], ["--format", "package.module:Name"]),
        (["verify", "--help"], ["--device", "--steps", "auto"]),
        (["bench", "--help"], ["--peers", "--workload", "--param-dtype", "--json", "--chart"]),
    ],
)
def test_help(arguments: list[str], words: list[str], run: Run) -> None:
    done = run(*arguments)
    assert (done.code, done.err) == (0, "")
    text = " ".join(done.out.split())
    assert [w for w in words if w not in text] == []


def test_no_arguments_print_the_help(run: Run) -> None:
    done = run()
    assert "Usage: " in done.out + done.err
    assert (done.out + done.err).count("\n") > 5


def test_convert_state_goes_in_and_out(tmp_path: Path, run: Run) -> None:
    """torch.optim.AdamW's checkpoint into 4 bits of a conversion, and back: the same averages."""
    p = torch.nn.Parameter(torch.zeros(6, 64))
    adamw = torch.optim.AdamW([p], lr=2e-3)
    p.grad = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    adamw.step()
    old, new, back = (str(tmp_path / f"{n}.pt") for n in ("old", "new", "back"))
    torch.save({"optimizer": adamw.state_dict(), "step": 1}, old)
    done = run("convert-state", old, new, "--to", "adamw", "--convert", "stosign")
    assert done.code == 2 and "name its key with --key [SC722]" in done.err
    assert not Path(new).exists()
    done = run(
        "convert-state", old, new, "--to", "adamw", "--convert", "stosign", "--key", "optimizer"
    )
    assert done.code == 0, done.err
    assert "AdamWStoSign, state of 1 parameters" in done.out
    of = ["--from", "adamw", "--from-convert", "stosign"]
    done = run("convert-state", new, back, "--to", "torch", *of)
    assert done.code == 0, done.err
    saved = torch.load(back)
    other = torch.optim.AdamW([p])
    other.load_state_dict(saved)
    entry, wanted = other.state[p], adamw.state[p]
    assert torch.allclose(entry["exp_avg"], wanted["exp_avg"], rtol=0.13, atol=1e-4)
    assert float(entry["step"]) == 1 and other.param_groups[0]["lr"] == 2e-3
    done = run("convert-state", new, back, "--to", "s3", *of)
    assert done.code == 2 and "s cannot be taken from it" in done.err
    assert "Traceback" not in done.err and torch.load(back).keys() == saved.keys()
