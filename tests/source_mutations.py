"""Damage to small data sets: one change at random to one file, of the file or of what is in it."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rlbench_writer
from PIL import Image

ODD: tuple[Any, ...] = (  # values that no description should have
    *(None, True, 0, -1, 2**31, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\ud800"),
    *("../x", "a" * 300, "a/b", "{chunk_index.x}", [], {}, [None], [[]], [0], [-1, 2], ["a"], [3]),
    *({"x": 1}, {"type": []}, [[[[[[[[1]]]]]]]], "[" * 5000, "0000-00-00", b"\xff", [1e400, -1]),
)
SHAPES = ((), (0,), (1,), (4,), (5,), (4, 0), (0, 3), (4, 2, 2), (6, 3), (4, 40, 40, 3), (3, 1, 1))
DTYPES = ("f8", "f4", "f2", "u1", "i8", "?", "c8", "S4", ">f4", "u8")
Mutation = Callable[[Path, np.random.Generator], None]


def mutate(root: Path, seed: int) -> str:
    """Change one file below `root` (or `root` itself); return which, and how."""
    rng = np.random.default_rng(seed)
    files = sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else [root]
    kinds = sorted({file.suffix for file in files})
    kind = kinds[rng.integers(len(kinds))]  # each as often, however many files it has
    file = pick(rng, [f for f in files if f.suffix == kind])
    change = pick(rng, (CONTENT.get(kind, of_bytes), CONTENT.get(kind, of_bytes), of_bytes))
    change(file, rng)
    return f"{file.relative_to(root)}: {change.__name__}"


def pick(rng: np.random.Generator, of: Any) -> Any:
    return of[int(rng.integers(len(of)))]


def array(rng: np.random.Generator) -> np.ndarray:
    """Return an array of odd shape, dtype or content."""
    dtype = np.dtype(pick(rng, DTYPES))
    shape = pick(rng, SHAPES)
    if dtype.kind == "f" and rng.random() < 0.5:
        return np.full(shape, pick(rng, (np.nan, np.inf, -np.inf, 60000.0)), dtype)
    return (rng.normal(size=shape) * 100).astype(dtype)


def of_bytes(file: Path, rng: np.random.Generator) -> None:
    """Delete, cut, empty or flip the bytes of a file, or put something else in its place."""
    content, how = file.read_bytes(), int(rng.integers(8))
    file.unlink()
    if how == 0:
        return
    if how == 1:
        file.mkdir()
    elif how == 2:
        file.symlink_to(file.name)  # a loop
    elif how == 3:
        file.write_bytes(content[: int(rng.integers(len(content) + 1))])
    elif how == 4:
        file.write_bytes(pick(rng, (b"", b"\0" * 100, b"version https://git-lfs.github.com\n")))
    elif how == 5:
        file.write_bytes(content + rng.bytes(50))
    else:
        changed = bytearray(content)
        for _ in range(int(rng.integers(1, 9))):
            if changed:
                changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        file.write_bytes(bytes(changed))


def of_json(file: Path, rng: np.random.Generator) -> None:
    """Replace or delete one value of a JSON file, also in JSON texts inside it."""
    tree = json.loads(file.read_text())
    changed = _changed(tree, rng)
    text = json.dumps(changed, default=repr)
    file.write_text(text, errors="surrogatepass")


def _changed(value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, str) and value.startswith("{"):
        return json.dumps(_changed(json.loads(value), rng), default=repr)
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return pick(rng, ODD)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = pick(rng, keys)
    if rng.random() < 0.15:
        if isinstance(value, dict):
            return {k: v for k, v in value.items() if k != key} | {str(pick(rng, ODD)): value[key]}
        del value[key]
        return value
    value[key] = _changed(value[key], rng)
    return value


def of_parquet(file: Path, rng: np.random.Generator) -> None:
    """Change a column or the rows of a table."""
    import pyarrow
    from pyarrow import parquet

    table = parquet.read_table(file)
    names, how = table.column_names, int(rng.integers(6))
    name = pick(rng, names)
    if how == 0:
        table = table.drop_columns(name)
    elif how == 1:
        table = table.slice(0, int(rng.integers(len(table) + 1)))
    elif how == 2:
        table = table.take(rng.permutation(len(table)))
    elif how == 3:
        table = table.rename_columns([n + "x" * (n == name) for n in names])
    else:
        values = table[name].to_pylist()
        odd = [
            *([v] for v in values[:1]),
            *(None, -1, 0, 2**40, float("nan"), float("inf"), "x", [], [[1]], b"x", [1.0] * 9),
            *({"bytes": b"x"}, {"bytes": None, "path": "/etc/passwd"}, True, 3, 1.5),
        ]
        row, value = int(rng.integers(len(values) or 1)), pick(rng, odd)
        every = how == 5
        values = [value if every or i == row else v for i, v in enumerate(values)]
        try:
            column = pyarrow.array(values)
        except (pyarrow.ArrowException, TypeError, OverflowError):
            column = pyarrow.array([str(v) for v in values])
        table = table.set_column(names.index(name), name, column)
    parquet.write_table(table, file)


def of_hdf5(file: Path, rng: np.random.Generator) -> None:
    """Delete, replace or add a member or an attribute of an HDF5 file."""
    import h5py

    with h5py.File(file, "a") as opened:
        names: list[str] = []
        opened.visit(names.append)
        name, how = pick(rng, names), int(rng.integers(10))
        if how == 0:
            del opened[name]
        elif how == 1:
            value = pick(rng, ("", "{", "[1]", "null", json.dumps({"lang": [1]}), 3, np.zeros(2)))
            attribute = pick(rng, ("env_args", "problem_info", "ep_meta", "seed"))
            node = pick(rng, [opened[name], opened[name.split("/")[0]]])
            node.attrs[attribute] = value
        elif how == 2 and "env_args" in opened[name.split("/")[0]].attrs:
            node = opened[name.split("/")[0]]
            changed = _changed(json.loads(node.attrs["env_args"]), rng)
            node.attrs["env_args"] = json.dumps(changed, default=repr)
        elif how == 3:
            opened[f"{name.rpartition('/')[0]}/added"] = array(rng)
        elif how == 4:
            del opened[name]
            opened[name] = h5py.SoftLink(pick(rng, names))
        else:
            del opened[name]
            content = pick(
                rng,
                (
                    *(array(rng), array(rng), array(rng), ["x"] * 4, "x", h5py.Empty("f8")),
                    np.zeros(4, [("a", "f8"), ("b", "i4")]),
                ),
            )
            if rng.random() < 0.2:
                opened.create_group(name)["inside"] = content
            else:
                opened[name] = content


def of_npz(file: Path, rng: np.random.Generator) -> None:
    """Replace, rename, remove or add an array."""
    with np.load(file) as loaded:
        arrays = dict(loaded)
    name = pick(rng, sorted(arrays))
    how = int(rng.integers(4))
    if how == 0:
        del arrays[name]
    elif how == 1:
        arrays[pick(rng, ("a/b", "..", "x" * 250, "é", "a\\b", " ", "."))] = arrays.pop(name)
    else:
        key = name if how == 2 else "added"
        odd = (array(rng), np.array([None, {}]), np.array("text"), np.zeros(2, [("a", "f8")]))
        arrays[key] = pick(rng, odd)
    np.savez(file, **arrays)


def of_npy(file: Path, rng: np.random.Generator) -> None:
    """Replace the array, or something in the object that it holds."""
    found = np.load(file, allow_pickle=True)
    if found.shape == () and found.dtype == object and rng.random() < 0.7:
        np.save(file, np.array(_changed(found.item(), rng), object), allow_pickle=True)
        return
    values = found.astype(np.int64) if found.dtype.kind in "iu" else array(rng)
    if values.dtype == np.int64 and values.size and rng.random() < 0.6:
        values.flat[int(rng.integers(values.size))] += int(pick(rng, (-1, 1, 5, -(10**6))))
    else:
        values = array(rng)
    np.save(file, values)


def of_pickle(file: Path, rng: np.random.Generator) -> None:
    """Replace what a pickle holds, or an attribute of one observation of a demo, or of all."""
    odd = (*ODD, array(rng), np.float64(np.nan), np.zeros((2, 2)), [array(rng)])
    with rlbench_writer.classes():
        value = pickle.loads(file.read_bytes())
        observations = getattr(value, "_observations", None)
        if observations is None or rng.random() < 0.15:
            rlbench_writer.dump(pick(rng, odd), file)
            return
        name, new = pick(rng, sorted(vars(observations[0]))), pick(rng, odd)
        for seen in observations if rng.random() < 0.5 else [pick(rng, observations)]:
            if isinstance(getattr(seen, name), dict):
                inside = getattr(seen, name)
                inside[pick(rng, sorted(inside))] = new
            else:
                setattr(seen, name, new)
        if rng.random() < 0.1:
            value._observations = observations[: int(rng.integers(3))]
        rlbench_writer.dump(value, file)


def of_png(file: Path, rng: np.random.Generator) -> None:
    """Save the image in another size, mode or format."""
    with Image.open(file) as image:
        image.load()
        how = int(rng.integers(3))
        if how == 0:
            changed = image.resize((int(rng.integers(1, 50)), int(rng.integers(1, 50))))
        else:
            changed = image.convert(pick(rng, ("L", "1", "P", "RGBA", "I;16", "CMYK", "LA", "I")))
    content = io.BytesIO()
    try:
        changed.save(content, "PNG" if how < 2 else "JPEG")
    except OSError:  # a mode that the format does not have
        changed.convert("L").save(content, "PNG")
    file.write_bytes(content.getvalue())


def of_yaml(file: Path, rng: np.random.Generator) -> None:
    """Replace the text."""
    texts = ("", "x", "[", "{}", "act_min_bound: [1]", "robot_obs: 3", "act_: [[x]]", "1: 2", "[1]")
    more = ("act_min_bound: null", "robot_obs: [{mean: x}]", "act_max_bound: [.nan]", "&a [*a]")
    file.write_text(pick(rng, (*texts, *more)))


CONTENT: dict[str, Mutation] = {
    ".hdf5": of_hdf5,
    ".json": of_json,
    ".npy": of_npy,
    ".npz": of_npz,
    ".parquet": of_parquet,
    ".pkl": of_pickle,
    ".png": of_png,
    ".yaml": of_yaml,
}


def copy(source: Path, target: Path) -> Path:
    """Copy a data set, a folder or a file, in place of whatever is at `target`."""
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target
