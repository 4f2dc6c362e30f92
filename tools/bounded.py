"""A command that may be ended at any time, together with everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def bounded(
    command: list[str], cwd: Path, env: dict[str, str], over: Callable[[], bool]
) -> tuple[int | None, str]:
    """Exit code, None where ``over`` ended it, and what it wrote until then, both streams in one.

    The output goes to a file: a pipe stays open for as long as any grandchild lives.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=said,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        code = process.poll()
        while code is None and not over():
            time.sleep(0.1)
            code = process.poll()
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        return code, said.read()
