"""Arrays of .npz files, read three times as fast as by `np.load`: once, requested keys only."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from latentplan import budget, foreign
from latentplan.data import npy
from latentplan.errors import SourceError
from latentplan.types import Array

BEFORE = 30  # bytes of an entry's zip header before its two strings, whose lengths come last
RATIO = 1032  # the largest compression factor of deflate
MEMBER = b"PK\x01\x02"  # begins the description of each entry


def names(path: Path | str) -> list[str]:
    """Return the names of the arrays in a file; SourceError if it is damaged."""
    return list(_Npz(Path(path)).entries)


def read(path: Path | str, keys: Iterable[str]) -> dict[str, Array]:
    """Return arrays of a file by name, read-only, with their checksums verified.

    Raises SourceError that names the file if it is missing or damaged, has no such array, or holds
    an array of objects, which could run any code; BudgetError if the arrays are too large.
    """
    with budget.reading():
        npz = _Npz(Path(path))
        return {key: npz.array(key) for key in keys}


class _Npz:
    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.exists():
            raise SourceError(f"{path}: is missing")
        content = foreign.content(path, error=SourceError)
        budget.claim(str(path), items=content.count(MEMBER))
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as file:
                entries = file.infolist()
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as e:
            raise SourceError(f"{path}: not an .npz file that can be read ({e})") from None
        self._content = memoryview(content)
        self.entries = {entry.filename.removesuffix(".npy"): entry for entry in entries}

    def array(self, key: str) -> Array:
        where = f"{self._path}: {key}"
        if key not in self.entries:
            has = ", ".join(sorted(self.entries))
            raise SourceError(f"{self._path}: has no array {key!r}; it has {has}")
        try:
            content = self._inflated(where, self.entries[key])
            header = npy.header(content)
            if header.dtype.hasobject:
                raise ValueError("an array of objects, which is refused")
            return npy.values(where, content, header)
        except (ValueError, zlib.error) as e:
            raise SourceError(f"{where} cannot be read ({e})") from None

    def _inflated(self, where: str, entry: zipfile.ZipInfo) -> bytes:
        lengths = self._content[entry.header_offset + BEFORE - 4 : entry.header_offset + BEFORE]
        start = entry.header_offset + BEFORE + sum(np.frombuffer(lengths, "<u2").tolist())
        packed = self._content[start : start + entry.compress_size]
        budget.claim(where, bytes=entry.file_size)
        if entry.compress_type == zipfile.ZIP_STORED:
            content = bytes(packed)
        elif entry.compress_type == zipfile.ZIP_DEFLATED:
            content = _inflated(packed, entry.file_size)
        else:
            raise ValueError(f"unknown compression ({entry.compress_type})")
        if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise ValueError("its size or checksum is wrong")
        return content


def _inflated(packed: memoryview, size: int) -> bytes:
    """Return what a deflated stream of a declared size holds, at most one byte more."""
    if RATIO * len(packed) <= budget.allowed().bytes:  # also where the declaration is a lie
        return zlib.decompress(packed, -zlib.MAX_WBITS, max(min(size, RATIO * len(packed)), 1))
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
