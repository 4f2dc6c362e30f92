"""The command line: build, show, verify, bench, lr, convert-state, new, list, doctor.

Exit codes: 0 fine, 1 a check failed, 2 bad input (one line that says what is wrong).
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from signconv import __version__
from signconv.cli_options import (
    Convert,
    Device,
    DeviceOption,
    Dtype,
    Format,
    Math,
    MathOption,
    Spec,
    StateOption,
    passes,
    specs,
    subjects,
    targets,
)
from signconv.errors import SignconvError
from signconv.ir.nodes import DEFAULT_STATE
from signconv.terminal import Fitting, busy, err, fit, out, plain, prose, say

if TYPE_CHECKING:
    from signconv.pipeline import Build

app = typer.Typer(
    name="signconv",
    help="Write an optimizer as mathematics; get a fused GPU optimizer with FP8 state.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def build(
    spec: Annotated[
        str | None,
        typer.Argument(help="built-in name, file.py:Name or module:Name", autocompletion=specs),
    ] = None,
    convert: Convert = None,
    state: StateOption = DEFAULT_STATE,
    math: MathOption = Math.fp32,
    out_dir: Annotated[Path, typer.Option("--out", help="folder to write to")] = Path("generated"),
    name: Annotated[str | None, typer.Option(help="class name instead of the default")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; exit 1 with a diff")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="every file that generated/ should hold")
    ] = False,
) -> None:
    """Build an optimizer: one Python module with its kernel, reference and class."""
    from signconv import pipeline
    from signconv.pipeline.catalogue import GENERATED
    from signconv.pipeline.files import MODULE

    if everything == (spec is not None):
        raise typer.BadParameter("give either SPEC or --all")
    chosen: dict[str, object] = {"--convert": convert, "--name": name}
    chosen |= {"--state": state != DEFAULT_STATE, "--math": math is not Math.fp32}
    given = ", ".join(option for option, value in chosen.items() if value)
    if everything and given:
        raise typer.BadParameter(f"--all builds a fixed list: leave out {given}")
    if spec is not None:
        made = [pipeline.build(spec, convert=convert, state=state, math=math.value, name=name)]
    else:
        made = [pipeline.build(**asdict(e)) for e in GENERATED]
    changed = False
    for b in made:
        path = out_dir / b.module.file_name
        if check:
            changed |= _print_diff(path, b.module.source)
            continue
        path, written = pipeline.write(b.module, out_dir, MODULE)
        words = "written" if written else "unchanged"
        line = f"{path} {words}: class {b.module.class_name}, {b.kernel.storage} state"
        say(line)
    if changed:
        raise typer.Exit(1)


def _print_diff(path: Path, source: str) -> bool:
    """Print how the file differs from what would be built; returns whether it does."""
    present = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if present == source:
        say(f"{path} is up to date")
        return False
    lines = difflib.unified_diff(
        present.splitlines(keepends=True), source.splitlines(keepends=True), str(path), "rebuilt"
    )
    sys.stdout.writelines(lines)
    return True


@app.command()
def show(
    spec: Spec,
    convert: Convert = None,
    state: StateOption = DEFAULT_STATE,
    format: Annotated[Format, typer.Option(help="output format")] = Format.text,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="write a page instead, which needs no network"),
    ] = None,
) -> None:
    """Print the algorithm after conversion, what it costs, and what can be proved of it."""
    from signconv import pipeline
    from signconv.prove import report

    if html is not None:
        if format is not Format.text:
            raise typer.BadParameter("--html writes a page: leave out --format")
        return _write_page(html, pipeline.build(spec, convert=convert, state=state))
    with busy("proving"):
        made = report.assemble(pipeline.build(spec, convert=convert, state=state))
    if format is Format.text:
        typer.echo(report.as_text(made, prose()))
    else:
        typer.echo({"latex": report.as_latex, "json": report.as_json}[format.value](made))


def _write_page(path: Path, made: Build) -> None:
    from signconv.pipeline.files import refuse_stranger, write_own
    from signconv.prove import page

    refuse_stranger(path, page.MARK)  # before the proof, which takes seconds
    with busy("proving"):
        text = page.as_html(made)
    path, written = write_own(path, text, page.MARK)
    words = "written" if written else "unchanged"
    line = f"{path} {words}: {made.module.class_name}, {made.kernel.storage} state"
    say(line)


@app.command()
def verify(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SPEC|MODULE", help="a spec, or a generated file", autocompletion=specs
        ),
    ],
    convert: Convert = None,
    state: StateOption = DEFAULT_STATE,
    math: MathOption = Math.fp32,
    device: DeviceOption = Device.auto,
    steps: Annotated[int, typer.Option(min=1, help="steps compared bit for bit")] = 3,
) -> None:
    """Check one optimizer: oracle, passes, reference and kernel against each other."""
    from signconv.verification import verify as verification

    with busy("checking") as progress:
        report = verification.verify(
            subject,
            convert=convert,
            state=state,
            math=math.value,
            device=device.value,
            steps=steps,
            watch=lambda row: progress.update(
                progress.task_ids[0], description=f"checked {row.witness}"
            ),
        )
    out.print(Fitting(report.table()))
    if not report:
        raise typer.Exit(1)


@app.command()
def bench(
    specs: Annotated[
        list[str],
        typer.Argument(
            metavar="SPEC…",
            help="SPEC[+PASS…][@STATE][@math=MATH][@params=DTYPE]",
            autocompletion=subjects,
        ),
    ],
    convert: Annotated[
        str | None,
        typer.Option(help="passes of every SPEC that names none itself", autocompletion=passes),
    ] = None,
    state: StateOption = DEFAULT_STATE,
    math: MathOption = Math.fp32,
    param_dtype: Annotated[Dtype, typer.Option(help="parameters and gradients")] = Dtype.bf16,
    device: DeviceOption = Device.auto,
    workload: Annotated[str, typer.Option(help="A, B, C, D, comma-separated, or all")] = "all",
    with_peers: Annotated[
        bool, typer.Option("--peers", help="measure other libraries too, where installed")
    ] = False,
    peer: Annotated[
        list[str] | None, typer.Option(help="one of these other libraries; may be repeated")
    ] = None,
    peer_limit: Annotated[
        float, typer.Option(min=1, help="seconds for a peer's first step, and for the rest")
    ] = 120,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="medians and quartiles, as JSON")
    ] = None,
    chart_file: Annotated[
        Path | None, typer.Option("--chart", metavar="FILE", help="bar chart: .png, .svg or .pdf")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="tiny shapes, three samples: a trial, no benchmark")
    ] = False,
) -> None:
    """Time a step: device, host, traffic, memory; beside a copy and beside other libraries."""
    from signconv.bench import command
    from signconv.verification.verify import device_type

    where = device_type(device.value)
    record = command.run(
        command.Options(
            specs, convert, state, math.value, param_dtype.value, where, workload,
            with_peers, tuple(peer or ()), peer_limit, json_file, chart_file, quick,
        ),
        sys.argv[1:], out, err,
    )  # fmt: skip
    if any("error" in row for row in record["rows"] if row["kind"] == "ours"):
        raise typer.Exit(1)


@app.command()
def convert_state(
    source: Annotated[Path, typer.Argument(help="a checkpoint that torch.save wrote")],
    target: Annotated[Path, typer.Argument(help="the file to write")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="optimizer that is to load it; torch: torch.optim's keys",
            autocompletion=targets,
        ),
    ],
    convert: Convert = None,
    state: StateOption = DEFAULT_STATE,
    of: Annotated[
        str | None,
        typer.Option("--from", help="optimizer of signconv that wrote it", autocompletion=specs),
    ] = None,
    of_convert: Annotated[
        str | None,
        typer.Option("--from-convert", help="its passes, comma-separated", autocompletion=passes),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="where in the checkpoint the optimizer's state_dict is")
    ] = None,
    param_dtype: Annotated[Dtype, typer.Option("--dtype", help="of the parameters")] = Dtype.fp32,
) -> None:
    """Convert an optimizer's saved state: torch.optim's, torchao's, FlashOptim's and
    bitsandbytes' to one of signconv's, between those, and back to torch's."""
    import torch

    from signconv.pipeline.checkpoint import Target
    from signconv.pipeline.checkpoint import convert_state as converted

    name, count = converted(
        source, target, Target(to, convert, state), (of and Target(of, of_convert)) or None, key,
        {"fp32": torch.float32, "bf16": torch.bfloat16}[param_dtype.value],
    )  # fmt: skip
    say(f"{target} written: {name}, state of {count} parameters")


@app.command()
def lr(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="path/to/file.py:make or package.module:make: returns (model, loss)",
        ),
    ],
    spec: Spec = "adamw",
    convert: Convert = None,
    state: StateOption = DEFAULT_STATE,
    low: Annotated[float, typer.Option(help="first lr")] = 1e-6,
    high: Annotated[float, typer.Option(help="last lr")] = 1.0,
    steps: Annotated[int, typer.Option(help="steps of each run")] = 200,
    seed: Annotated[int, typer.Option(help="of all random numbers")] = 0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the curves: .png, .svg or .pdf")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="the curves as numbers")
    ] = None,
) -> None:
    """Find a learning rate on your own model: a run in which it rises, beside AdamW's."""
    from signconv.tuning import command

    curves = command.run(
        model, spec, convert, state, low=low, high=high, steps=steps, seed=seed,
        picture=picture, json_file=json_file, busy=busy,
    )  # fmt: skip
    out.print(Fitting(command.table(curves)))
    out.print(command.HINT, markup=False)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the file: my_adam, say")],
    out_dir: Annotated[Path, typer.Option("--out", help="folder to write to")] = Path("."),
) -> None:
    """Begin an optimizer of your own: a commented spec, and a test that passes."""
    from signconv.pipeline import starter

    made = starter.new(name, out_dir)
    lines = [
        f"{made.spec} written: class {made.class_name}, AdamW to begin with",
        f"{made.test} written: its test",
        "Next:",
        *(f"    {command}" for command in made.commands),
    ]
    for line in lines:
        say(line)


@app.command(name="list")
def list_() -> None:
    """Print the built-in optimizers and the passes."""
    from signconv import pipeline
    from signconv.passes.base import registry

    specs = Table(title="optimizers", title_justify="left")
    for column in ("name", "state", "description"):
        specs.add_column(column)
    for name in pipeline.builtin_names():
        p = pipeline.resolve(name)
        state = ", ".join(m.name for m in p.moments) or "none"
        specs.add_row(name, state, escape(_sentence(p.doc)))
    out.print(Fitting(specs))
    passes = Table(title="passes (--convert), in the order they are applied", title_justify="left")
    for column in ("name", "does", "requires", "options"):
        passes.add_column(column)
    for x in registry().values():
        options = ", ".join(f"{k}={v}" for k, v in x.options.items())
        passes.add_row(x.name, x.summary, x.requires, escape(options))
    out.print(Fitting(passes))


def _sentence(doc: str) -> str:
    """The first sentence of a docstring; "et al. 2020" and "Alg. 2" end none."""
    text = " ".join(doc.split())
    found = re.match(r".*?(?<!\bal)(?<!\bAlg)(?<!\bEq)(?<!\bSec)\.(?= |$)", text)
    return found[0] if found else text


@app.command()
def doctor() -> None:
    """Print what this machine can run, and why not."""
    from signconv.verification.doctor import diagnose

    table = Table(title=f"signconv {__version__}", title_justify="left")
    for column in ("what", "state", "detail"):
        table.add_column(column)
    for what, ok, detail in diagnose():
        table.add_row(what, "[green]yes[/]" if ok else "[yellow]no[/]", escape(detail))
    out.print(Fitting(table))


for _command in app.registered_commands:  # or the list of commands cuts their first sentences
    _command.short_help = " ".join((_command.callback.__doc__ or "").split())


def main() -> None:
    """Entry point: every error a user can cause is one line on stderr and exit code 2.

    A reader of the output that goes away (``signconv list | head -1``) ends the program quietly.
    """
    fit()
    try:
        width = max(min(out.width, 80) - 2, 24)  # typer's own is 50 at least
        code = app(standalone_mode=False, prog_name="signconv", terminal_width=width)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a program that SIGPIPE ended
    except SignconvError as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted")
    except Exception as error:
        words = getattr(error, "format_message", None)
        if words is None and re.search(r" \[SC\d{3}\]$", str(error)):  # the runtime's
            _fail(str(error))
        if words is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(words())
            sys.exit(2)
        _fail(_usage(error, words()))
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any, message: str) -> str:
    """A usage error with the names that are valid where the message lacks them."""
    line = " ".join(message.split())
    possible = getattr(error, "possibilities", None)
    if possible and "mean" not in line:
        line += f" Did you mean {possible[0]}?"
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "signconv"
    return f"{line} (see {command} --help) [SC700]"


def _fail(message: str) -> None:
    err.print(plain(f"signconv: {message}"), markup=False)
    sys.exit(2)
