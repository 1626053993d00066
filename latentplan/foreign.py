"""Files that others wrote: regular ones alone, read within the budget."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from latentplan import budget
from latentplan.errors import LatentplanError, first_line

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
CHARACTER = 4  # bytes of one in memory, at most


def check_regular(path: Path | str, *, error: type[LatentplanError]) -> int:
    """Return the size of a regular file; `error` for anything else, such as a device or a pipe.

    For libraries that open a path by themselves.
    """
    try:
        return _checked(path, os.stat(path), error)
    except (OSError, ValueError) as e:
        raise error(f"{path}: cannot be read ({_reason(e)})") from None


def opened(path: Path | str, *, error: type[LatentplanError]) -> BinaryIO:
    """Return a regular file opened for reading; `error` for anything else, without waiting."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as e:
        raise error(f"{path}: cannot be read ({_reason(e)})") from None
    try:
        _checked(path, os.fstat(number), error)
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def content(path: Path | str, *, error: type[LatentplanError], limit: int | None = None) -> bytes:
    """Return the bytes of a file; `error` if it is missing or larger than `limit` bytes.

    Raises BudgetError if it is larger than the budget.
    """
    with opened(path, error=error) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is not None and size > limit:
            raise error(f"{path}: has {size} bytes, allowed are {limit}")
        budget.claim(str(path), bytes=size)
        try:
            # As many as were claimed: a file that grows meanwhile, or of /proc, is cut off.
            return file.read(size)
        except OSError as e:
            raise error(f"{path}: cannot be read ({_reason(e)})") from None


def text(path: Path | str, *, error: type[LatentplanError], limit: int | None = None) -> str:
    """Return the UTF-8 text of a file; raises as `content` does, and `error` if it is not UTF-8."""
    found = content(path, error=error, limit=limit)
    budget.claim(str(path), bytes=len(found) * (CHARACTER - 1))
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError as e:
        raise error(f"{path}: is not UTF-8 text ({e.reason} at byte {e.start})") from None


def read_json(path: Path | str, *, error: type[LatentplanError]) -> Any:
    """Return the values of a JSON file; raises as `text` does, and `error` if it is not JSON."""
    return from_json(text(path, error=error), where=str(path), error=error)


def from_json(found: str | bytes, *, where: str, error: type[LatentplanError]) -> Any:
    """Return the values of a JSON text; `error` if it is not JSON, BudgetError if it has too many.

    Values are counted before they are made: by the commas and brackets, also those in strings.
    """
    marks: tuple[Any, ...] = (b",", b"[", b"{") if isinstance(found, bytes) else (",", "[", "{")
    budget.claim(where, items=1 + sum(map(found.count, marks)))
    try:
        return json.loads(found)
    except RecursionError:
        raise error(f"{where}: not JSON that can be read (it is nested too deeply)") from None
    except ValueError as e:  # of the text, its encoding, or a number of thousands of digits
        raise error(f"{where}: not JSON that can be read ({_reason(e)})") from None


def _checked(path: Path | str, found: os.stat_result, error: type[LatentplanError]) -> int:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise error(f"{path}: is {KINDS.get(kind, 'no file')}, need a regular file")
    return found.st_size


def _reason(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or first_line(error)
