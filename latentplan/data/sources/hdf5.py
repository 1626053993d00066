"""Reading of other packages' HDF5 files, with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.errors import MissingDependency, SourceError
from latentplan.types import Array, ArraySpec


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yield the `h5py.File` at `path`, read-only.

    Raises MissingDependency without h5py, SourceError if the file is missing or damaged, also
    in the block.
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
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as e:  # h5py's errors on damage
        raise SourceError(f"{path}: damaged, or not an HDF5 file ({_line(e)})") from None


def array(group: Any, name: str) -> Any:
    """Return the `h5py.Dataset` of numbers that `group` has under `name`; SourceError otherwise."""
    import h5py

    found = group.get(name)
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "biuf" or not found.shape:
        raise SourceError(f"{group.file.filename}: {group.name} has no array of numbers {name!r}")
    return found


def row_spec(dataset: Any) -> ArraySpec:
    """Return the spec of a row of a dataset (L, ...)."""
    return ArraySpec(tuple(dataset.shape[1:]), dataset.dtype.name)


def read(dataset: Any, spec: ArraySpec) -> Array:
    """Return all rows of a dataset (L, ...), in the machine's byte order.

    Raises SourceError if rows are not of `spec`, or hold a NaN or an infinity.
    """
    where = f"{dataset.file.filename}: {dataset.name}"
    if row_spec(dataset) != ArraySpec(spec.shape, spec.dtype):
        raise SourceError(
            f"{where}: holds {dataset.dtype} rows of shape {tuple(dataset.shape[1:])}, the first "
            f"episode's are {spec.dtype} {spec.shape}"
        )
    values = np.asarray(dataset[:], np.dtype(spec.dtype))
    check_finite(where, values)
    return values


def check_finite(where: str, values: Array) -> None:
    """Raise SourceError if `values` hold a NaN or an infinity."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise SourceError(f"{where}: {bad} of {values.size} numbers are NaN or infinite")


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip("'\"")
