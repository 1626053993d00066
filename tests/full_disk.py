"""A disk that is full, for this process and its children."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the kernel refuse every write beyond `size` bytes of a file; Python gets EFBIG.

    Python keeps no compiled modules meanwhile: up to 3.12 it leaves one that is cut off.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    keeps, named = sys.dont_write_bytecode, os.environ.get("PYTHONDONTWRITEBYTECODE")
    sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = True, "1"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = keeps
        os.environ.pop("PYTHONDONTWRITEBYTECODE")
        if named is not None:
            os.environ["PYTHONDONTWRITEBYTECODE"] = named
