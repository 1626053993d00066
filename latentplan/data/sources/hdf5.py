"""Reading of other packages' HDF5 files: the numbers of that file alone.

HDF5 can take an array from elsewhere: external links and virtual data sets from other HDF5 files,
external storage from any file of this machine. They are refused by name before anything is opened,
so that a foreign file cannot copy private ones into a store. Soft links inside the file are
followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from latentplan import budget, foreign
from latentplan.data import array_limits
from latentplan.errors import MissingDependency, SourceError, first_line
from latentplan.types import Array, ArraySpec

HOPS = 16  # soft links to follow for one name, as HDF5 itself does
MEMBERS = 2_000  # groups and arrays below one group
DEPTH = 32  # of groups in groups; deeper is a link that leads back
# What h5py raises on damage, whose kind depends on the place that is damaged.
DAMAGE = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError)


@contextmanager
def opened(path: Path) -> Iterator[Group]:
    """Yield the root group of the file at `path`, read-only.

    Raises MissingDependency without h5py, SourceError if the file is missing or damaged.
    """
    try:
        import h5py
    except ImportError:
        raise MissingDependency(f'{path}: needs h5py: pip install "latentplan[hdf5]"') from None
    if path.is_dir():
        inside = ", ".join(sorted(p.name for p in path.glob("*.h*5"))) or "none"
        raise SourceError(f"{path}: is a folder; name one HDF5 file (found in it: {inside})")
    if not path.exists():
        raise SourceError(f"{path}: no such file")
    foreign.opened(path, error=SourceError).close()  # says plainly why it may not be read
    with _damage(path):
        file = h5py.File(path, "r")
    with file:
        yield Group(path, file)


class Group:
    """A group of an open file."""

    def __init__(self, path: Path, group: Any) -> None:
        """Take an `h5py.Group` of the file at `path`."""
        self.path, self._group = path, group
        self.name = str(group.name)
        self.where = f"{path}: {self.name}"

    def names(self) -> list[str]:
        """Return the names of the members, in the file's order, without those that are not text."""
        with _damage(self.where):
            budget.claim(self.where, items=len(self._group))
            return [name for name in self._group if isinstance(name, str)]

    def find(self, name: str) -> Group | Data | None:
        """Return what lies at `name`, a path; None if nothing does.

        Raises SourceError if it leads out of the file through a link.
        """
        import h5py

        with _damage(self.where):
            found = _resolved(self._group, name, HOPS)
            if isinstance(found, h5py.Group):
                return Group(self.path, found)
            return Data(self.path, found) if isinstance(found, h5py.Dataset) else None

    def group(self, name: str) -> Group:
        """Return the group at `name`; SourceError if there is none."""
        found = self.find(name)
        if not isinstance(found, Group):
            what = "has no group" if found is None else "has an array in place of the group"
            raise SourceError(f"{self.where} {what} {name!r}; it has {_listed(self.names())}")
        return found

    def array(self, name: str) -> Data:
        """Return the array of numbers at `name`; SourceError if there is none."""
        found = self.find(name)
        if isinstance(found, Data):
            found.check()
            return found
        if found is None:
            raise SourceError(
                f"{self.where} has no array {name!r}; it has {_listed(self.names())}"
            )
        raise SourceError(
            f"{self.where}: {name!r} is a group of {_listed(found.names())}, need an array"
        )

    def arrays(self) -> dict[str, Data]:
        """Return all arrays below, also in groups of groups, by their names joined with dots."""
        found: dict[str, Data] = {}
        waiting: list[tuple[str, Group, int]] = [("", self, 0)]
        left = MEMBERS
        while waiting:
            prefix, group, depth = waiting.pop()
            if depth > DEPTH:
                raise SourceError(f"{self.where}: has more than {DEPTH} groups in one another")
            for name in group.names():
                left -= 1
                if left < 0:
                    raise SourceError(f"{self.where}: has more than {MEMBERS} groups and arrays")
                key = f"{prefix}.{name}" if prefix else name
                try:
                    member = group.find(name)
                except SourceError as e:
                    member = Data(self.path, None, refused=str(e))
                if isinstance(member, Group):
                    waiting.append((key, member, depth + 1))
                elif key in found:
                    raise SourceError(f"{self.where}: two arrays are called {key!r}")
                elif member is not None:
                    found[key] = member
        return dict(sorted(found.items()))

    def dotted(self, key: str) -> Data:
        """Return the array that `arrays` calls `key`; SourceError if there is none."""
        found = self.find(key)  # a name may have dots itself
        if isinstance(found, Data):
            return self.array(key)
        every = self.arrays() if "." in key else {}
        if key not in every:
            return self.array(key)
        every[key].check()
        return every[key]

    def attribute(self, name: str) -> Any:
        """Return an attribute, None without one."""
        with _damage(f"{self.where}.{name}"):
            return self._group.attrs.get(name)

    def mapping(self, name: str) -> dict[str, Any]:
        """Return the JSON mapping in an attribute; empty if there is none."""
        text = self.attribute(name)
        if not isinstance(text, str | bytes) or not text.strip():
            return {}
        found = foreign.from_json(text, where=f"{self.where}.{name}", error=SourceError)
        return found if isinstance(found, dict) else {}


class Data:
    """An array (L, ...) of an open file."""

    def __init__(self, path: Path, dataset: Any, *, refused: str = "") -> None:
        """Take an `h5py.Dataset`, or None and the reason for which it was `refused`."""
        self.path, self._dataset = path, dataset
        self.refused = refused
        if dataset is not None:
            self.where = f"{path}: {dataset.name}"
            self._shape, self._dtype = tuple(dataset.shape or ()), dataset.dtype
            self.refused = _elsewhere(self.where, dataset)

    @cached_property
    def unfit(self) -> str:
        """Why a store cannot hold its rows; empty if it can."""
        if self.refused:
            return ""  # an error wherever it is asked for, not something to leave out
        if self._dtype.kind in "SO":
            return "holds texts or objects, not numbers"
        if not self._shape:
            return "is a single value, not one a step"
        return array_limits.unfit(self._shape[1:], self._dtype)

    def check(self) -> None:
        """Raise SourceError if it lies outside the file, or is no array of numbers."""
        if self.refused:
            raise SourceError(self.refused)
        if self.unfit:
            raise SourceError(f"{self.where} {self.unfit}")

    def row(self) -> ArraySpec:
        """Return the spec of a row; SourceError as `check`."""
        self.check()
        return ArraySpec(self._shape[1:], self._dtype.name)

    def __len__(self) -> int:
        """Return L."""
        return int(self._shape[0])

    def read(self, spec: ArraySpec | None = None, *, finite: bool = True) -> Array:
        """Return all rows, in the machine's byte order.

        Raises SourceError if they are not of `spec`, or with `finite` hold a NaN or an infinity.
        """
        row = self.row()
        if spec is not None and (row.shape, row.dtype) != (spec.shape, spec.dtype):
            raise SourceError(
                f"{self.where}: holds {row.dtype} rows of shape {row.shape}, the first episode's "
                f"are {spec.dtype} {spec.shape}"
            )
        values = np.asarray(self._content(slice(None)), np.dtype(row.dtype))
        if finite and values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise SourceError(f"{self.where}: {bad} of {values.size} numbers are NaN or infinite")
        return values

    def texts(self, *, first: bool = False) -> list[str]:
        """Return the texts that it holds, or the `first` alone; none if it holds anything else."""
        import h5py

        if self.refused:
            raise SourceError(self.refused)
        texts = self._dtype.kind == "S" or h5py.check_string_dtype(self._dtype) is not None
        if not texts or len(self._shape) != 1:
            return []
        found = self._content(slice(1 if first else None))
        with _damage(self.where):
            return [t.decode() if isinstance(t, bytes) else str(t) for t in found]

    def _content(self, rows: slice) -> Any:
        """Return rows; MissingDependency if they need a filter that is not installed.

        Raises BudgetError before rows are allocated that exceed the budget: a file may declare
        gigabytes that it does not hold.
        """
        count = len(range(len(self))[rows]) if self._shape else 1
        item = max(self._dtype.itemsize, 1) * prod(self._shape[1:])
        budget.claim(self.where, bytes=count * item, items=count)
        with _damage(self.where):
            missing = self._missing_filter()
            try:
                return self._dataset[rows]
            except OSError:
                if not missing:
                    raise
        raise MissingDependency(
            f"{self.where}: is compressed with the HDF5 filter {missing}, which is not installed: "
            "pip install hdf5plugin"
        )

    def _missing_filter(self) -> str:
        """Return number and name of a filter of the array that is not installed, else nothing."""
        import h5py

        about = self._dataset.id.get_create_plist()
        for code, _, _, name in map(about.get_filter, range(about.get_nfilters())):
            if not h5py.h5z.filter_avail(code):
                with suppress(ImportError):
                    import hdf5plugin  # noqa: F401  # registers its filters
            if not h5py.h5z.filter_avail(code):
                return f"{code} ({name.decode(errors='replace').split(';')[0] or 'unnamed'})"
        return ""


def _resolved(group: Any, name: str, hops: int) -> Any:
    """Return what lies at a path, None if nothing does; SourceError if it leads out of the file."""
    import h5py

    found = group.file if name.startswith("/") else group
    for part in name.split("/"):
        if part in ("", "."):
            continue
        if not isinstance(found, h5py.Group):
            return None
        link = found.get(part, getlink=True)
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise SourceError(
                f"{group.file.filename}: {found.name}/{part} is a link to another file, "
                f"{link.filename!r}, which is refused; copy the data into one file"
            )
        if isinstance(link, h5py.SoftLink):
            if hops == 0:
                raise SourceError(f"{group.file.filename}: {found.name}/{part} links in a circle")
            found = _resolved(found, link.path, hops - 1)
        else:
            found = found[part]
    return found


def _elsewhere(where: str, dataset: Any) -> str:
    """Return why an array is refused that does not lie in its file; empty if it does."""
    if dataset.is_virtual:
        return f"{where}: is a virtual data set, which is refused: it reads other files; repack it"
    if dataset.id.get_create_plist().get_external_count():
        name = dataset.external[0][0]
        return f"{where}: lies in another file, {name!r}, which is refused; repack it into one"
    return ""


@contextmanager
def _damage(where: object) -> Iterator[None]:
    """Raise SourceError for the errors of h5py in the block, which must have no other code."""
    try:
        yield
    except DAMAGE as e:
        line = first_line(e).strip("'\"")  # that a KeyError has
        raise SourceError(f"{where}: damaged, or not an HDF5 file ({line})") from None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:20]) or "nothing"
