"""Arrays of .npz files, read three times as fast as by `np.load`: once, requested keys only."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.errors import SourceError
from latentplan.types import Array

BEFORE = 30  # bytes of an entry's zip header before its two strings, whose lengths come last
RATIO = 1032  # the largest compression factor of deflate


def names(path: Path | str) -> list[str]:
    """Return the names of the arrays in a file; SourceError if it is damaged."""
    return list(_Npz(Path(path)).entries)


def read(path: Path | str, keys: Iterable[str]) -> dict[str, Array]:
    """Return arrays of a file by name, read-only, with their checksums verified.

    Raises SourceError that names the file if it is missing or damaged, has no such array, or holds
    an array of objects, which could run any code.
    """
    npz = _Npz(Path(path))
    return {key: npz.array(key) for key in keys}


class _Npz:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._content = memoryview(path.read_bytes())
            with zipfile.ZipFile(io.BytesIO(self._content)) as file:
                entries = file.infolist()
        except FileNotFoundError:
            raise SourceError(f"{path}: is missing") from None
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as e:
            raise SourceError(f"{path}: not an .npz file that can be read ({e})") from None
        self.entries = {entry.filename.removesuffix(".npy"): entry for entry in entries}

    def array(self, key: str) -> Array:
        if key not in self.entries:
            has = ", ".join(sorted(self.entries))
            raise SourceError(f"{self._path}: has no array {key!r}; it has {has}")
        try:
            content = self._inflated(self.entries[key])
            if content[:8] != b"\x93NUMPY\x01\x00":
                raise ValueError("not of .npy version 1")
            start = 10 + int.from_bytes(content[8:10], "little")
            shape, fortran, dtype = _header(content[8:start])
            if dtype.hasobject:
                raise ValueError("an array of objects, which is refused")
            return np.frombuffer(content, dtype, offset=start).reshape(
                shape, order="F" if fortran else "C"
            )
        except (ValueError, TypeError, zlib.error, MemoryError) as e:
            raise SourceError(f"{self._path}: {key} cannot be read ({e})") from None

    def _inflated(self, entry: zipfile.ZipInfo) -> bytes:
        lengths = self._content[entry.header_offset + BEFORE - 4 : entry.header_offset + BEFORE]
        start = entry.header_offset + BEFORE + sum(np.frombuffer(lengths, "<u2").tolist())
        packed = self._content[start : start + entry.compress_size]
        if entry.compress_type == zipfile.ZIP_STORED:
            content = bytes(packed)
        elif entry.compress_type == zipfile.ZIP_DEFLATED:
            if entry.file_size > RATIO * len(packed) + 64:
                raise ValueError("its declared size is impossible")
            content = zlib.decompress(packed, -zlib.MAX_WBITS, max(entry.file_size, 1))
        else:
            raise ValueError(f"unknown compression ({entry.compress_type})")
        if zlib.crc32(content) != entry.CRC:
            raise ValueError("its checksum is wrong")
        return content


@lru_cache(maxsize=1024)  # the same few headers in every file of a set
def _header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(text))
