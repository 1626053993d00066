"""Files that are there whole or not at all, and locks that no process leaves behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, with the same suffix; it becomes `path` when the block ends well.

    Where the block or the disk fails (OSError), `path` stays as it was and nothing else is left.
    Folders on the way to `path` are made.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb+") as f:
            os.fsync(f.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def lock(path: Path) -> IO[bytes]:
    """Return the file `path`, made where it is missing, locked until it is closed.

    The kernel drops the lock with the process, however that ends; the file stays. Raises
    BlockingIOError where another process has the lock.
    """
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
