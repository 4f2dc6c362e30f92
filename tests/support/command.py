"""The command line for tests.

The commands run in forks of one process that has imported everything, which saves two seconds
each; the fork then runs ``python -m signconv`` as a user's shell would.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT, environment

SERVER = r"""
import gc, json, os, runpy, sys, tempfile, traceback
import signconv.cli, signconv.pipeline
import signconv.verification.differential, signconv.verification.doctor
gc.freeze()  # or every fork copies what it collects
for line in sys.stdin:
    request = json.loads(line)
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    pid = os.fork()
    if pid == 0:
        for target, fd in enumerate((os.open(os.devnull, os.O_RDONLY), out.fileno(), err.fileno())):
            os.dup2(fd, target)
        os.chdir(request["cwd"])
        os.environ.update(request["environment"])
        sys.argv = ["signconv", *request["arguments"]]
        code = 0
        try:
            runpy.run_module("signconv", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # what an interpreter does at its end takes longer than most commands
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    texts = []
    for file in (out, err):
        file.seek(0)
        texts.append(file.read().decode())
    print(json.dumps([code, *texts]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


@contextmanager
def running() -> Iterator[Run]:
    """What runs ``signconv ARGUMENTS`` in ``cwd`` (default: the checkout)."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(*arguments: str | Path, cwd: Path = ROOT, columns: int | None = None) -> Done:
        changes = {} if columns is None else {"COLUMNS": str(columns)}
        request = {
            "arguments": [str(a) for a in arguments], "cwd": str(cwd), "environment": changes,
        }  # fmt: skip
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return Done(*json.loads(server.stdout.readline()))

    yield ask
    server.stdin.close()
    assert server.wait(timeout=30) == 0
