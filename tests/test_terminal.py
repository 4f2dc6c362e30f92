"""Output at 40, 80 and 200 columns, piped and with NO_COLOR; what a shell completes."""

import os
import pty
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from signconv import cli
from signconv import cli_options as options
from signconv.passes.base import registry
from signconv.pipeline import builtin_names, resolve
from signconv.terminal import Fitting, plain
from tests.support import ROOT, environment
from tests.support.command import Run

WIDTHS = (40, 80, 200)
every_width = pytest.mark.parametrize("width", WIDTHS)


def too_long(text: str, width: int) -> list[str]:
    """Lines that do not fit, but for those that are one word beside a name."""
    return [x for x in text.splitlines() if cell_len(x) > width and len(x.split()) > 2]


# ---------------------------------------------------------------- tables


def table() -> Table:
    made = Table(title="a title", caption="and a caption")
    for name in ("name", "options\nof it", "words"):
        made.add_column(name)
    made.add_row("first", "noise=fresh|antithetic|golden", "what it does is said in these words")
    made.add_row("[bold]second[/]", "", "a path: /somewhere/rather/deep/and/long.py")
    return made


def printed(width: int) -> str:
    text = StringIO()
    Console(file=text, width=width, highlight=False).print(Fitting(table()))
    return text.getvalue()


@pytest.mark.parametrize("width", [45, 59, 60, 79, 80, 85, 100, 119, 120, 200])
def test_no_word_of_a_table_is_cut_and_no_line_is_too_long(width: int) -> None:
    text = printed(width)
    assert "…" not in text and [x for x in text.splitlines() if cell_len(x) > width] == []
    words = "a title caption name first second noise=fresh|antithetic|golden said in these words"
    words += " /somewhere/rather/deep/and/long.py"
    shown = text.split()
    assert [w for w in words.split() if w not in (*shown, "name")] == []


def test_a_table_is_a_list_where_it_is_narrow_and_a_table_where_it_fits() -> None:
    rows = printed(59).splitlines()
    assert rows[:3] == ["a title", "first", "  options of it: noise=fresh|antithetic|golden"]
    assert rows[-1] == "and a caption" and "│" not in "".join(rows)
    assert not [x for x in rows if x.endswith(" ") or x.startswith("  options of it: \n")]
    assert printed(120).count("│") == printed(200).count("│") == 2 * 4


def test_one_word_wider_than_the_window_is_folded_not_cut() -> None:
    text = printed(20)
    assert "/somewhere/rather/deep/and/long.py" in "".join(text.split())
    assert [x for x in text.splitlines() if cell_len(x) > 20] == []


# ---------------------------------------------------------------- commands


@every_width
def test_list(width: int, run: Run) -> None:
    """Every word of every first sentence, and every option, whole."""
    done = run("list", columns=width)
    assert done.code == 0 and too_long(done.out, width) == [] and "\x1b" not in done.out
    shown = set(done.out.split())
    wanted = {*builtin_names(), *registry()}
    wanted |= {w for n in builtin_names() for w in cli._sentence(resolve(n).doc).split()}
    wanted |= {w for x in registry().values() for w in f"{x.summary} {x.requires}".split()}
    wanted |= {f"{k}={v.split()[0]}" for x in registry().values() for k, v in x.options.items()}
    assert [w for w in wanted if w not in shown and f"{w}," not in shown] == []


def test_first_sentences() -> None:
    for name in builtin_names():
        doc, found = " ".join(resolve(name).doc.split()), cli._sentence(resolve(name).doc)
        assert (
            doc.startswith(found) and found.endswith(".") and found.count("(") == found.count(")")
        )
    assert (
        cli._sentence("As Kim et al. 2020, Alg. 2,\n say. More.")
        == "As Kim et al. 2020, Alg. 2, say."
    )
    assert cli._sentence("no end") == "no end"


@every_width
def test_doctor_and_help(width: int, run: Run) -> None:
    for arguments in (["doctor"], ["--help"], ["build", "--help"], ["bench", "--help"]):
        done = run(*arguments, columns=width)
        assert done.code == 0 and too_long(done.out, width) == [] and "\x1b" not in done.out
    commands = " ".join(run("--help", columns=width).out.split())
    assert "one Python module with its kernel, reference and class." in commands


@every_width
def test_show(width: int, run: Run) -> None:
    """The same facts, whatever the width."""
    done = run("show", "adamw", "--convert", "stosign", columns=width)
    assert done.code == 0 and too_long(done.out, min(width, 100)) == []
    words = " ".join(done.out.split())
    for fact in ("update = sign(m.corrected + sqrt(v.corrected) * noise)", "e4m3 1.031", "16.125",
                 "weight_decay = 0.01 (0 <= weight_decay)", "it is a sign.",
                 "2.062 in all as built here, --state fp8"):  # fmt: skip
        assert fact in words
    assert ("read and written per step, bf16 parameters" in words) == (width >= 100)


@pytest.mark.parametrize("no_color", [False, True])
def test_colours_on_a_terminal(no_color: bool) -> None:
    master, slave = pty.openpty()
    env = environment(NO_COLOR="1" if no_color else None, TERM="xterm-256color", COLUMNS="80")
    code = "from signconv.terminal import out; out.print('PyTorch: [green]yes[/]')"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=env, cwd=ROOT) as process:
        os.close(slave)
        text = b""
        try:
            while part := os.read(master, 65536):
                text += part
        except OSError:  # the other side is closed
            pass
    os.close(master)
    assert process.returncode == 0 and b"PyTorch" in text
    assert bool(re.search(rb"\x1b\[(\d+;)*3\d", text)) != no_color


def test_a_line_is_one_line_whatever_is_in_it() -> None:
    assert plain("a\nb\u202ec\x1b[1m") == "a\\nb\\u202ec\\x1b[1m"


# ---------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("function", "typed", "offered"),
    [
        (options.specs, "adamw", ["adamw"]),
        (options.specs, "mine.py", []),
        (options.targets, "to", ["torch"]),
        (options.passes, "neste", ["nesterov"]),
        (options.passes, "stosign,neste", ["stosign,nesterov"]),
        (options.passes, "soft:p=3,nesterov,sto", ["soft:p=3,nesterov,stosign"]),
        (options.passes, "stosign,sign", []),  # both are links
        (options.passes, "soft,so", []),
        (options.passes, "stosign:eps=", ["stosign:eps=keep", "stosign:eps=drop"]),
        (options.passes, "nesterov,soft:", ["nesterov,soft:p="]),
        (options.passes, "unknown,presi", ["unknown,presign"]),
        (options.subjects, "adamw+stosi", ["adamw+stosign"]),
        (options.subjects, "adamw+stosign@bf", ["adamw+stosign@bf16"]),
        (options.subjects, "adamax", ["adamax"]),
        (options.states, "fp8", ["fp8", "fp8-raw"]),
        (options.states, "m=fp4,v=b", ["m=fp4,v=bf16"]),
    ],
)
def test_what_is_offered(function, typed: str, offered: list[str]) -> None:
    assert function(typed) == offered


def test_nothing_typed_offers_all() -> None:
    assert options.specs("") == builtin_names()
    assert options.passes("") == list(registry())


BASH = """
eval "$(_SIGNCONV_COMPLETE=source_bash signconv)"
complete -p signconv >&2
try() { COMP_WORDS=(signconv "$@"); COMP_CWORD=$#; _signconv_completion signconv
        echo "${COMPREPLY[*]}"; }
try sho
try show adamw --convert stosign,neste
try build adamw --state fp4
try show adamw --format la
try verify lio
"""


def test_in_bash(tmp_path: Path) -> None:
    """The script that typer installs, asked as readline asks it."""
    command = tmp_path / "signconv"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m signconv "$@"\n')
    command.chmod(0o755)
    env = environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", BASH], env=env, capture_output=True, text=True)
    assert "-F _signconv_completion signconv" in done.stderr, done.stderr
    assert done.stdout.split() == ["show", "stosign,nesterov", "fp4", "latex", "lion"]


def test_the_completion_loads_no_torch() -> None:
    code = "import sys, signconv.cli_options as o; o.passes('st'); o.specs(''); o.states('')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"],
        env=environment(), cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "False\n", done.stderr
