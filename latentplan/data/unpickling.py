"""Pickles of other packages, read without running any code: classes become namespaces.

A pickle is a program. This reader accepts a few names of numpy, for which it has its own code, and
the classes that the caller lists. An object of those becomes a `Namespace`: no class is imported
and no constructor runs. Every other name is refused, builtins included, before anything is called.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

import numpy as np

from latentplan.errors import SourceError
from latentplan.types import Array

LIMIT = 256 << 20  # bytes of a file
PLACES = ("PUT", "LONG_BINPUT")  # opcodes that store at a numbered place of the unpickler's memo
DEPTH = 100  # of nested lists
KINDS = re.compile(r"[?biufc]\d{0,2}|[SU]\d{1,6}|O8?")  # numbers, texts and objects; no records


class Namespace:
    """The attributes of an object whose class was not imported."""

    @property
    def kind(self) -> str:
        """The name of its class: `rlbench.demo.Demo`."""
        return f"{type(self).__module__}.{type(self).__name__}"


def read_pickle(path: Path | str, *, known: Collection[str] = (), limit: int = LIMIT) -> Any:
    """Return what a pickle holds: plain values, read-only arrays, Namespaces of `known` classes.

    `known` are full names (`rlbench.demo.Demo`). Raises SourceError that names the file and what it
    refers to if that is any other name, a persistent id or an array of objects, if the file is
    larger than `limit` bytes, or if it is no pickle.
    """
    return _load(Path(path), _content(Path(path), limit), known=known)


def read_npy(path: Path | str, *, known: Collection[str] = (), limit: int = LIMIT) -> Any:
    """Return the array of a .npy file, or its object if it is an array () of one object.

    Objects are read, and errors raised, as by `read_pickle`.
    """
    path = Path(path)
    content = _content(path, limit)
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
        if not dtype.hasobject:
            return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, KeyError, EOFError) as e:
        raise SourceError(f"{path}: not a .npy file that can be read ({_line(e)})") from None
    if dtype != np.dtype("O"):
        raise SourceError(f"{path}: holds records of objects, which are refused")
    found = _load(path, content[file.tell() :], known=known, objects=True)
    if not isinstance(found, np.ndarray) or found.shape != shape:
        raise SourceError(f"{path}: its header does not fit what it holds")
    return found[()] if shape == () else found


def _content(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as e:
        raise SourceError(f"{path}: cannot be read ({e.strerror})") from None
    if len(content) > limit:
        raise SourceError(f"{path}: is larger than {limit} bytes, which is refused")
    return content


def _load(path: Path, content: bytes, *, known: Collection[str], objects: bool = False) -> Any:
    try:
        # Checked before the unpickler reserves memory for a number in the file.
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name in PLACES and int(cast(int, argument)) > len(content):
                raise ValueError("a place in its memo that no such file needs")
        return _plain(_Reader(content, known, objects=objects).load(), {}, DEPTH)
    except _Refused as e:
        raise SourceError(
            f"{path}: its pickle refers to {e}, which is refused: it could run any code; "
            "get the file again from its source"
        ) from None
    except (
        pickle.UnpicklingError,
        *(ValueError, TypeError, AttributeError, LookupError, EOFError, ImportError),
        *(ArithmeticError, MemoryError, RecursionError),
    ) as e:
        raise SourceError(f"{path}: not a pickle that can be read ({_line(e)})") from None


class _Refused(Exception):
    """A pickle refers to something that is refused; the text names it."""


class _Dtype:
    """Placeholder of a dtype: numpy's own trusts flags and then pointers of the file."""

    def __init__(self, text: str) -> None:
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[2:5] != (None, None, None):
            raise _Refused("an array of records")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Placeholder of an array until the whole file is read."""

    value: Array

    def __init__(self, *, objects: bool) -> None:
        self._objects = objects

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        if not isinstance(dtype, _Dtype):
            raise TypeError("an array without a dtype")
        if not dtype.dtype.hasobject:
            self.value = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
            return
        if not self._objects:
            raise _Refused("an array of objects")
        if not isinstance(data, list) or len(data) != math.prod(shape):
            raise ValueError("an array of objects without its objects")
        self.value = np.empty(len(data), object)
        self.value[:] = data
        self.value = self.value.reshape(shape, order=order)


class _Reader(pickle.Unpickler):
    """An unpickler with own methods for numpy's names; what a pickle sets on them is lost."""

    def __init__(self, content: bytes, known: Collection[str], *, objects: bool) -> None:
        super().__init__(io.BytesIO(content))
        self._objects = objects
        self._unencoded = len(content)  # the same string a thousand times would fill the memory
        self._array_type = object()
        self._classes: dict[str, type] = {}  # new ones for every file
        self._known = known
        self._numpy: dict[str, Any] = {
            "numpy.ndarray": self._array_type,
            "numpy.dtype": self._dtype,
            "_codecs.encode": self._encode,
        }
        for core in ("numpy.core", "numpy._core"):
            self._numpy |= {
                f"{core}.multiarray._reconstruct": self._reconstruct,
                f"{core}.multiarray.scalar": self._scalar,
                f"{core}.numeric._frombuffer": self._frombuffer,
            }

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the replacement of a name; `_Refused` if it has none."""
        full = f"{module}.{name}"
        if full in self._numpy:
            return self._numpy[full]
        if full not in self._known:
            raise _Refused(full)
        if full not in self._classes:
            self._classes[full] = type(name, (Namespace,), {"__module__": module})
        return self._classes[full]

    def persistent_load(self, pid: Any, /) -> Any:
        """Refuse: nothing outside the file is read."""
        raise _Refused(f"the persistent id {pid!r}")

    def _dtype(self, text: str, *_: Any) -> _Dtype:
        if not KINDS.fullmatch(text):
            raise _Refused(f"an array of dtype {text!r}")
        return _Dtype(text)

    def _reconstruct(self, kind: Any, *_: Any) -> _Array:
        if kind is not self._array_type:
            raise _Refused("an array of another class")
        return _Array(objects=self._objects)

    def _frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        array = _Array(objects=False)
        array.fill(data, dtype, shape, order)
        return array

    def _scalar(self, dtype: _Dtype, data: bytes) -> Any:
        array = _Array(objects=False)
        array.fill(data, dtype, (), "C")
        return array.value[()]

    def _encode(self, text: str, encoding: str = "") -> bytes:
        if encoding != "latin1":  # protocol 2 writes bytes like this
            raise _Refused(f"_codecs.encode to {encoding!r}")
        self._unencoded -= len(text)
        if self._unencoded < 0:
            raise ValueError("more bytes than it has")
        return text.encode("latin1")


def _plain(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Return `value` with arrays in place of placeholders; lists and namespaces are kept.

    `done` has the result for each object, by id; all are alive until the end.
    """
    if id(value) in done:
        return done[id(value)][1]
    if depth == 0:
        raise RecursionError("it is nested too deeply")

    def plain(inner: Any) -> Any:
        return _plain(inner, done, depth - 1)

    result = value
    if isinstance(value, _Array):
        result = value.value
        if result.dtype == object:
            for place, inner in enumerate(result.flat):
                result.flat[place] = plain(inner)
    elif isinstance(value, tuple):
        result = tuple(map(plain, value))
    elif isinstance(value, list | dict | Namespace):
        done[id(value)] = value, value  # it may hold itself
        _replace(value, plain)
    elif not isinstance(value, str | bytes | bytearray | int | float | complex | np.generic):
        if value is not None:
            raise _Refused(f"a {type(value).__name__} as a value")
    done[id(value)] = value, result
    return result


def _replace(value: list[Any] | dict[Any, Any] | Namespace, plain: Callable[[Any], Any]) -> None:
    if isinstance(value, list):
        value[:] = map(plain, value)
        return
    inside: dict[Any, Any] = vars(value) if isinstance(value, Namespace) else value
    for key in inside:
        if not isinstance(key, str | int | float | bytes | tuple | type(None)):
            raise _Refused(f"a {type(key).__name__} as a key")
        inside[key] = plain(inside[key])


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
