"""Folders for results: named, made when something is written, removed if nothing was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from latentplan.errors import LatentplanError
from latentplan.urls import local


def new_folder(name: str) -> Path:
    """Return the path of a folder that does not exist yet: runs/NAME-1, runs/NAME-2, ..."""
    return next(c for n in count(1) if not (c := Path("runs") / f"{name}-{n}").exists())


@contextmanager
def folder(path: str | Path) -> Iterator[Path]:
    """Make a folder, and remove it, with the parents made for it, if nothing is written there.

    Raises LatentplanError if it cannot be made.
    """
    found = local(path, where="out")
    made = [each for each in (found, *found.parents) if not each.exists()]
    try:
        found.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise LatentplanError(f"{found}: the folder cannot be made ({e.strerror})") from None
    try:
        yield found
    finally:
        with suppress(OSError):  # something is in it
            for each in made:
                each.rmdir()
