"""Atomic files and folders, which exist whole or not at all, and locks that end with a process.

A file or folder that is being written has a hidden name beside its own and is locked by the process
that writes it. One that nobody locks was left by a killed process, and the next that writes into
the same folder removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a full disk
PARTIAL = re.compile(r"\..+\.[0-9a-f]+\.partial(\.[^.]*)?")  # names of what is being written
STEM = 40  # characters of a name that its partial name keeps; the disk allows 255 bytes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty file to write to, with the same suffix, renamed to `path` at the end.

    If the block or the disk fails (OSError), `path` stays as it was and nothing else is left.
    Missing parent folders are created. A symbolic link at `path` is replaced, not followed.
    """
    with _partial(path, path.suffix, folder=False) as partial:
        yield partial
        with partial.open("rb+") as f:
            os.fsync(f.fileno())
        partial.replace(path)


def write(path: Path, content: bytes) -> None:
    """Write a file as `replacing` does, aside under a name that no `*` with its suffix finds."""
    with _partial(path, "", folder=False) as partial:
        with partial.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, renamed to `path` at the end.

    If the block or the disk fails (OSError), nothing is left. Missing parent folders are created.
    Raises OSError if `path` is there already and is not an empty folder.
    """
    with _partial(path, path.suffix, folder=True) as partial:
        yield partial
        partial.rename(path)


def remove_folder(path: Path) -> None:
    """Remove a folder: its name is free at once, and the rest a leftover if this is interrupted."""
    gone = path.with_name(f".{path.stem[:STEM]}.{secrets.token_hex(4)}.partial")
    path.rename(gone)
    _remove_tree(gone)


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files and folders of killed processes from a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for name in [e.name for e in entries if PARTIAL.fullmatch(e.name)]:
            with suppress(OSError):  # it is in use, or another's
                _remove_unlocked(folder / name)


def lock(path: Path) -> IO[bytes]:
    """Return the file `path`, created if it is missing, locked until it is closed.

    The kernel releases the lock when the process ends, however it does; the file stays, with what
    it holds. Raises BlockingIOError if another process has the lock, OSError for a symbolic link,
    which others may have put there.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as e:
        if e.errno != errno.ELOOP:
            raise
        raise OSError(e.errno, f"{path.name} is a symbolic link; remove it") from None
    file = os.fdopen(descriptor, "rb", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def is_clutter(name: str) -> bool:
    """Return whether an operating system wrote a file of this name beside the user's own."""
    return name.startswith("._") or name in (".DS_Store", "Thumbs.db", "desktop.ini")


@contextmanager
def _partial(path: Path, suffix: str, *, folder: bool) -> Iterator[Path]:
    """Yield a new locked file or folder beside `path`, which is removed if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    partial, descriptor = _locked(path, suffix, folder)
    try:
        yield partial
    finally:
        try:
            if folder:
                with suppress(OSError):
                    _remove_tree(partial)
            else:
                partial.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _remove_tree(folder: Path) -> None:
    """Remove a folder, in which threads of a call that failed may still be writing for a moment."""
    for pause in (0.001, 0.01, 0.1, 1.0):
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            if not folder.exists():
                return
        except OSError as e:
            if e.errno != errno.ENOTEMPTY:
                raise
        else:
            return
        time.sleep(pause)
    shutil.rmtree(folder)


def _locked(path: Path, suffix: str, folder: bool) -> tuple[Path, int]:
    """Return a new file or folder beside `path`, and the descriptor that locks it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    if folder:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    while True:
        token = secrets.token_hex(4)
        partial = path.with_name(f".{path.stem[:STEM]}.{token}.partial{suffix}")
        try:
            if folder:
                partial.mkdir()
            descriptor = os.open(partial, flags, 0o666)
        except FileNotFoundError:
            if not path.parent.exists():
                raise
            continue  # another process took it for a leftover before it was locked
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # the same
        except OSError:
            return partial, descriptor  # no locks here, so nobody removes leftovers
        else:
            if partial.exists():
                return partial, descriptor
        os.close(descriptor)


def _remove_unlocked(path: Path) -> None:
    """Remove a file or folder; OSError if a process has it locked."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(descriptor)
