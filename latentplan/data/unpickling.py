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
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import budget, foreign
from latentplan.data import npy
from latentplan.errors import SourceError, first_line
from latentplan.types import Array

LIMIT = 256 << 20  # bytes of a file
OTHER, TUPLE, MARK = range(3)  # values on the unpickler's stack, as far as they matter
OPCODES = pickletools.opcodes
PUSHES = {o.name: OTHER for o in OPCODES if not o.stack_before and len(o.stack_after) == 1}
PUSHES |= {"MARK": MARK, "EMPTY_TUPLE": TUPLE}
SETS = ("EMPTY_SET", "ADDITEMS", "FROZENSET")
GETS, MEMOS = ("GET", "BINGET", "LONG_BINGET"), ("PUT", "BINPUT", "LONG_BINPUT")
TUPLES = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
KEYED = ("SETITEM", "SETITEMS", "DICT")  # take alternating keys and values
CHANGES = ("BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS")  # leave what they change
for name in (*GETS, *SETS):
    PUSHES.pop(name, None)
LARGEST = 1 << 63  # a whole number
BATCH = 1024  # opcodes that are claimed together
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
    larger than `limit` bytes, if a value holds itself, or if it is no pickle; BudgetError if it
    has too many values, those that are shared counted at each place.
    """
    content = foreign.content(path, error=SourceError, limit=limit)
    return _load(Path(path), content, known=known)


def read_npy(path: Path | str, *, known: Collection[str] = (), limit: int = LIMIT) -> Any:
    """Return the array of a .npy file, or its object if it is an array () of one object.

    Objects are read, and errors raised, as by `read_pickle`.
    """
    path = Path(path)
    content = foreign.content(path, error=SourceError, limit=limit)
    try:
        header = npy.header(content)
        if not header.dtype.hasobject:
            return npy.values(str(path), content, header)
    except ValueError as e:
        raise SourceError(f"{path}: not a .npy file that can be read ({first_line(e)})") from None
    if header.dtype != np.dtype("O"):
        raise SourceError(f"{path}: holds records of objects, which are refused")
    found = _load(path, content[header.start :], known=known, objects=True)
    if not isinstance(found, np.ndarray) or found.shape != header.shape:
        raise SourceError(f"{path}: its header does not fit what it holds")
    return found[()] if header.shape == () else found


def _load(path: Path, content: bytes, *, known: Collection[str], objects: bool = False) -> Any:
    try:
        with budget.reading():
            _check_program(path, content)
            value, _ = _Plain(str(path)).of(_Reader(path, content, known, objects=objects).load())
        return value
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
        raise SourceError(f"{path}: not a pickle that can be read ({first_line(e)})") from None


def _check_program(path: Path, content: bytes) -> None:
    """Raise ValueError for what would exhaust the unpickler, BudgetError for too many opcodes.

    It reserves memory for any numbered place of its memo, and computes the hash of a key: that of a
    tuple recurses without a limit, and takes 2^n steps if each of n tuples holds the next twice. So
    its stack is followed, as far as tuples go.
    """
    stack: list[int] = []
    memo: dict[int, int] = {}
    for count, (opcode, given, _) in enumerate(pickletools.genops(content)):
        if count % BATCH == 0:
            budget.claim(str(path), items=BATCH)
        name = opcode.name
        if name in PUSHES:
            stack.append(PUSHES[name])
        elif not opcode.stack_after:
            if name in MEMOS:
                memo[_place(given, content)] = stack[-1]
            else:
                _popped(stack, opcode)
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in GETS:
            stack.append(memo.get(_place(given, content), OTHER))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in SETS:
            raise _Refused("a set as a value")
        else:
            target, taken = _popped(stack, opcode)
            if name in KEYED and TUPLE in taken[::2]:
                raise _Refused("a tuple as a key")
            stack.append(TUPLE if name in TUPLES else target)
        if type(given) is int and not -LARGEST <= given < LARGEST:
            raise ValueError("a whole number of more than 64 bits")


def _place(given: Any, content: bytes) -> int:
    if given > len(content):
        raise ValueError("a place in its memo that no such file needs")
    return int(given)


def _popped(stack: list[int], opcode: pickletools.OpcodeInfo) -> tuple[int, list[int]]:
    """Take what an opcode takes off the stack; return what it changes, if anything, and the rest.

    BUILD, APPEND and their like leave the changed value on the stack.
    """
    before, taken = list(opcode.stack_before), list[int]()
    if pickletools.markobject in before:
        while (top := stack.pop()) != MARK:
            taken.append(top)
        taken.reverse()
        before = before[: before.index(pickletools.markobject)]
    taken = [stack.pop() for _ in before][::-1] + taken
    if opcode.name in CHANGES:
        return taken[0], taken[1:]
    return OTHER, taken


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

    def __init__(self, where: str, *, objects: bool) -> None:
        self._where, self._objects = where, objects

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        if not isinstance(dtype, _Dtype):
            raise TypeError("an array without a dtype")
        if not dtype.dtype.hasobject:
            self.value = npy.shaped(self._where, data, dtype.dtype, shape=shape, order=order)
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

    def __init__(
        self, path: Path, content: bytes, known: Collection[str], *, objects: bool
    ) -> None:
        super().__init__(io.BytesIO(content))
        self._where, self._objects = str(path), objects
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
        raise _Refused(f"the persistent id {pid!r}" if isinstance(pid, str) else "a persistent id")

    def _dtype(self, text: str, *_: Any) -> _Dtype:
        if not KINDS.fullmatch(text):
            raise _Refused(f"an array of dtype {text!r}")
        return _Dtype(text)

    def _reconstruct(self, kind: Any, *_: Any) -> _Array:
        if kind is not self._array_type:
            raise _Refused("an array of another class")
        return _Array(self._where, objects=self._objects)

    def _frombuffer(self, data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        array = _Array(self._where, objects=False)
        array.fill(data, dtype, shape, order)
        return array

    def _scalar(self, dtype: _Dtype, data: bytes) -> Any:
        array = _Array(self._where, objects=False)
        array.fill(data, dtype, (), "C")
        return array.value[()]

    def _encode(self, text: str, encoding: str = "") -> bytes:
        if encoding != "latin1":  # protocol 2 writes bytes like this
            raise _Refused(f"_codecs.encode to {encoding!r}")
        self._unencoded -= len(text)
        if self._unencoded < 0:
            raise ValueError("more bytes than it has")
        return text.encode("latin1")


class _Plain:
    """Values with arrays in place of placeholders; lists and namespaces are kept."""

    def __init__(self, where: str) -> None:
        self._where = where
        # By id, the result for each object and how many values it has, which is 0 while it is
        # being made; all objects are alive until the end.
        self._done: dict[int, tuple[Any, int]] = {}

    def of(self, value: Any, depth: int = DEPTH) -> tuple[Any, int]:
        """Return the result, and how many values it has if written out without sharing."""
        if value is None or type(value) in (str, bytes, int, float, bool):
            return value, 1
        if id(value) in self._done:
            found = self._done[id(value)]
            if not found[1]:
                raise ValueError("a value holds itself")
            return found
        if depth == 0:
            raise RecursionError("it is nested too deeply")
        self._done[id(value)] = value, 0
        found = self._made(value, depth - 1)
        self._done[id(value)] = found
        if found[1] > budget.allowed().items:
            budget.claim(self._where, items=found[1])
        return found

    def _made(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, _Array):
            found = value.value
            return (found, 1) if found.dtype != object else self._objects(found, depth)
        if isinstance(value, list | tuple):
            pairs = [self.of(inner, depth) for inner in value]
            size = 1 + sum(size for _, size in pairs)
            if isinstance(value, tuple):
                return tuple(inner for inner, _ in pairs), size
            value[:] = [inner for inner, _ in pairs]
            return value, size
        if isinstance(value, dict | Namespace):
            inside: dict[Any, Any] = vars(value) if isinstance(value, Namespace) else value
            size = 1
            for key in inside:
                if not isinstance(key, str | int | float | bytes | type(None)):
                    raise _Refused(f"a {type(key).__name__} as a key")
                inside[key], inner = self.of(inside[key], depth)
                size += inner
            return value, size
        if not isinstance(value, bytearray | complex | np.generic):
            raise _Refused(f"a {type(value).__name__} as a value")
        return value, 1

    def _objects(self, array: Array, depth: int) -> tuple[Any, int]:
        size = 1
        for place, inner in enumerate(array.flat):
            array.flat[place], one = self.of(inner, depth)
            size += one
        return array, size
