"""Writing modules: atomically, into a folder of the user's or into the private cache."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path

from signconv.errors import BuildError
from signconv.render.module import Module


def write(module: Module, folder: Path) -> tuple[Path, bool]:
    """Write a module atomically; returns its path and whether the bytes changed.

    Whenever this process is killed, the target is the old file or the new one; what it leaves
    beside the target is swept by the next call.  Raises BuildError where the folder cannot be
    written; then nothing is left behind.
    """
    path = folder / module.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        if path.is_file() and path.read_bytes() == module.source.encode():
            return path, False
        for attempts_left in range(99, -1, -1):
            try:
                replace(path, module.source)
                break
            except FileNotFoundError:  # swept by another process before it was locked
                if not attempts_left:
                    raise
    except OSError as error:
        raise BuildError("SC308", f"cannot write {path}: {error.strerror or error}") from error
    return path, True


#: Ends the names of files that are being written.
UNFINISHED = ".signconv-tmp"
_BINARY = getattr(os, "O_BINARY", 0)


def replace(path: Path, source: str) -> None:
    """Write ``source`` beside ``path`` and move it over it; its mode is what the umask leaves."""
    mark = secrets.token_hex(8)
    temporary = path.parent / f".{path.name[:200]}.{mark}{UNFINISHED}"
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            _lock(file.fileno())
            file.write(source)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:  # Ctrl-C too leaves nothing behind
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _lock(handle: int) -> bool:
    """Mark a file as being written until it is closed, be it by the death of the process."""
    if sys.platform == "win32":
        return False  # what killed builds leave stays there
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def sweep(folder: Path) -> None:
    """Remove what killed builds left in ``folder``: unfinished files that nobody holds."""
    for stray in folder.glob(f".*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            handle = os.open(stray, os.O_RDWR)
            try:
                if _lock(handle):
                    os.unlink(stray)
            finally:
                os.close(handle)


def cache_folder() -> Path:
    """The user's private folder for optimizers built at run time: what lies there is executed.

    Its mode is set to 0700 where it was wider.  Raises BuildError where it cannot be made, and
    where it, or a link that leads to it, belongs to somebody else.
    """
    base = os.environ.get("SIGNCONV_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "signconv"
    )
    folder = Path(base)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "geteuid"):
            for info in (os.lstat(folder), os.stat(folder)):
                if info.st_uid != os.geteuid():
                    raise BuildError(
                        "SC606",
                        f"the cache folder {folder} belongs to another user, who could put code "
                        "there: set SIGNCONV_CACHE to a folder of your own",
                    )
            if os.stat(folder).st_mode & 0o077:
                os.chmod(folder, 0o700)
    except OSError as error:
        raise BuildError(
            "SC607",
            f"cannot make the cache folder {folder}: {error.strerror}; set SIGNCONV_CACHE to a "
            "folder that can be written",
        ) from error
    return folder
