"""Atomic files, which exist whole or not at all, and locks that end with their process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, with the same suffix, renamed to `path` if the block succeeds.

    If the block or the disk fails (OSError), `path` stays as it was and nothing else is left.
    Missing parent folders are created.
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
    """Return the file `path`, created if it is missing, locked until it is closed.

    The kernel releases the lock when the process ends, however it does; the file stays. Raises
    BlockingIOError if another process has the lock.
    """
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
