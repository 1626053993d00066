"""The description and the tables of LeRobot's v3 data sets.

    DATASET/
      meta/info.json                                 version, fps, features, patterns of the paths
      meta/tasks.parquet                             task_index, and the sentence as the index
      meta/episodes/chunk-000/file-000.parquet       the files and rows of each episode
      meta/latentplan.json                           the store's spec, if latentplan wrote it
      data/chunk-000/file-000.parquet                a row a frame, of several episodes
      videos/<feature>/chunk-000/file-000.mp4        also of several episodes
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from latentplan import budget, foreign
from latentplan.data.sources import lerobot_tasks
from latentplan.errors import MissingDependency, SourceError, first_line
from latentplan.files import is_clutter
from latentplan.types import Array

INFO, TASKS, EPISODES, OURS = (
    "meta/info.json",
    "meta/tasks.parquet",
    "meta/episodes",
    "meta/latentplan.json",
)
CONVERTER = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=NAME --root=FOLDER"
# A field in the pattern of a path.
FIELD = re.compile(r"\{(chunk_index|file_index|video_key)(?::0?([0-9]?)d)?\}")
FASTEST = 100_000  # frames a second


def needed(what: str) -> None:
    """Raise MissingDependency if pyarrow or av is not there."""
    try:
        import av  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as e:
        line = 'pip install "latentplan[lerobot]"'
        raise MissingDependency(f"{what}: needs {e.name}: {line}") from None


@dataclass
class Files:
    """The description and the tables of a data set; made by `find`."""

    root: Path
    fps: float
    features: dict[str, dict[str, Any]]  # each with dtype and shape
    patterns: dict[str, str]  # of paths below root: data_path, video_path
    tasks: dict[int, str]  # what task_index means
    episodes: list[dict[str, Any]]  # by episode_index: a row of meta/episodes each
    _numbers: tuple[Path, Array] | None = None  # episode_index of each row in the file read last
    _last: Any = field(default=None, repr=False)  # the row groups read last: episodes share them

    def data(self, index: int) -> Path:
        """Return the parquet file that holds an episode."""
        return self._path("data_path", self.episodes[index], "data")

    def video(self, index: int, feature: str) -> Path:
        """Return the mp4 file that holds an episode's images."""
        episode = self.episodes[index]
        return self._path("video_path", episode, f"videos/{feature}", video_key=feature)

    def frames(self, index: int, columns: Sequence[str]) -> Any:
        """Return the `pyarrow.Table` of an episode's frames, with those `columns` that exist."""
        path, number = self.data(index), int(self.episodes[index]["episode_index"])
        if self._numbers is None or self._numbers[0] != path:
            column = self.column(path, "episode_index")
            self._numbers = path, numbers(column, shape=(), where=f"{path}: episode_index")
        rows = np.flatnonzero(self._numbers[1] == number)
        length = self.episodes[index]["length"]
        if len(rows) != length:
            raise SourceError(
                f"{path}: has {len(rows)} frames of episode {number}, {EPISODES} says {length}"
            )
        if not len(rows):
            raise SourceError(f"{path}: episode {number} is empty")
        start, stop = int(rows[0]), int(rows[-1]) + 1
        if stop - start != len(rows):
            raise SourceError(f"{path}: the frames of episode {number} are not together")
        table, before = self._rows(path, start, stop, columns)
        return table.slice(start - before, stop - start)

    def column(self, path: Path, name: str) -> Any:
        """Return a column of all frames in a file of data."""
        with _opened(path) as file:
            if name not in file.schema_arrow.names:
                raise SourceError(f"{path}: has no column {name!r}")
            _claim(path, file, range(file.num_row_groups))
            return file.read([name])[name]

    def _rows(
        self, path: Path, start: int, stop: int, columns: Sequence[str]
    ) -> tuple[Any, int]:
        """Return the row groups with rows start to stop, and the number of rows before them."""
        with _opened(path) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = np.flatnonzero((ends > start) & (ends - sizes < stop)).tolist()
            asked = (path, groups, columns)
            if self._last is None or self._last[0] != asked:
                self._last = None  # frees the old rows before the new ones are read
                there = [name for name in columns if name in file.schema_arrow.names]
                _claim(path, file, groups)
                self._last = (asked, file.read_row_groups(groups, there))
            return self._last[1], int(ends[groups[0]] - sizes[groups[0]])

    def _path(self, pattern: str, episode: dict[str, Any], prefix: str, **names: str) -> Path:
        """Return a path below the root; SourceError if the pattern leads out of it."""
        number = episode["episode_index"]
        values: dict[str, Any] = dict(names)
        for name in ("chunk_index", "file_index"):
            values[name] = episode.get(f"{prefix}/{name}")
            if not isinstance(values[name], int):
                raise SourceError(
                    f"{self.root / EPISODES}: episode {number} has no {prefix}/{name}"
                )
        text = self.patterns.get(pattern, "")

        def filled(match: re.Match[str]) -> str:
            value = values.get(match[1], "")
            return f"{value:0{match[2]}d}" if match[2] and isinstance(value, int) else str(value)

        path = PurePosixPath(FIELD.sub(filled, text))
        if not text or path.is_absolute() or ".." in path.parts or "{" in FIELD.sub("", text):
            raise SourceError(
                f"{self.root / INFO}: {pattern} is {text!r}, need a path below the data set with "
                "{chunk_index:03d}, {file_index:03d} and, for videos, {video_key}"
            )
        return self.root / path


def find(root: Path) -> Files:
    """Return the files at `root`; SourceError if it is not a v3 data set."""
    needed(str(root))
    info = _info(root)
    fps = info.get("fps")
    if not isinstance(fps, int | float) or not 0 < fps < FASTEST:
        raise SourceError(f"{root / INFO}: fps is {fps!r}, need a number above 0")
    features = info.get("features")
    if not isinstance(features, dict):
        raise SourceError(f"{root / INFO}: has no features, need a mapping of them")
    patterns = {k: str(info[k]) for k in ("data_path", "video_path") if info.get(k)}
    path = root / TASKS
    tasks = lerobot_tasks.sentences(path, _table(path)) if path.exists() else {}
    described = {str(k): v for k, v in features.items() if isinstance(v, dict)}
    return Files(root, float(fps), described, patterns, tasks, _episodes(root))


def ours(root: Path) -> dict[str, Any]:
    """Return what `latentplan export` recorded of the store; {} if another program wrote it."""
    path = root / OURS
    if not path.exists():
        return {}
    values = foreign.read_json(path, error=SourceError)
    try:
        return {"spec": values["spec"], "observation": dict(values["observation"])}
    except (ValueError, LookupError, TypeError) as e:
        raise SourceError(f"{path}: damaged ({type(e).__name__}: {e}); delete it") from None


def numbers(column: Any, *, shape: tuple[int, ...], where: str) -> Array:
    """Return a column as an array (n, *shape); SourceError if a row is empty or does not fit."""
    import pyarrow

    values = column.combine_chunks()
    count, lists = len(values), pyarrow.types
    while True:
        values = values.storage if isinstance(values, pyarrow.ExtensionArray) else values
        if values.null_count:
            raise SourceError(f"{where}: some rows are empty")
        if not (
            lists.is_list(values.type)
            or lists.is_large_list(values.type)
            or lists.is_fixed_size_list(values.type)
        ):
            break
        values = values.flatten()
    if not (lists.is_boolean(values.type) or lists.is_integer(values.type)) and not (
        lists.is_floating(values.type)
    ):
        raise SourceError(f"{where}: holds {values.type}, need numbers")
    flat = values.to_numpy(zero_copy_only=False)
    if len(flat) != count * int(np.prod(shape)):
        raise SourceError(f"{where}: {len(flat)} numbers in {count} rows, need rows of {shape}")
    return np.asarray(flat).reshape(count, *shape)


def _episodes(root: Path) -> list[dict[str, Any]]:
    """Return the rows of meta/episodes in the order of their numbers.

    Tables of other episodes may be missing, as in a data set of which a part was downloaded.
    """
    tables = sorted(
        file for file in (root / EPISODES).rglob("*.parquet") if not is_clutter(file.name)
    )
    rows = [row for table in tables for row in _table(table, skip="stats/")]
    for row in rows:
        for name in ("episode_index", "length"):
            if not isinstance(row.get(name), int) or row[name] < 0:
                raise SourceError(
                    f"{root / EPISODES}: {name} of an episode is {row.get(name)!r}, need a number"
                )
    found = sorted(rows, key=lambda row: int(row["episode_index"]))
    indices = [row["episode_index"] for row in found]
    if not indices:
        raise SourceError(f"{root / EPISODES}: lists no episode")
    if len(set(indices)) < len(indices):
        twice = next(a for a, b in zip(indices, indices[1:], strict=False) if a == b)
        raise SourceError(f"{root / EPISODES}: lists episode {twice} more than once")
    return found


def _info(root: Path) -> dict[str, Any]:
    path = root / INFO
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder")
    if not path.exists():
        raise SourceError(f"{root}: has no {INFO}; not a LeRobot data set")
    info = foreign.read_json(path, error=SourceError)
    if not isinstance(info, dict) or "codebase_version" not in info:
        raise SourceError(f"{path}: not LeRobot's, which has a codebase_version")
    version = str(info["codebase_version"])
    if version.startswith(("v1", "v2")):
        raise SourceError(
            f"{root}: is a LeRobot {version} data set, v3 is read; convert it: {CONVERTER}"
        )
    if not version.startswith("v3"):
        raise SourceError(f"{path}: codebase_version {version!r} is unknown; v3 is read")
    return info


def _table(path: Path, skip: str = "\0") -> list[dict[str, Any]]:
    """Return the rows of a parquet file, without columns that start with `skip`."""
    with _opened(path) as file:
        columns = [n for n in file.schema_arrow.names if not n.startswith(skip)]
        _claim(path, file, range(file.num_row_groups))
        return list(file.read(columns).to_pylist())


def _claim(path: Path, file: Any, groups: Iterable[int]) -> None:
    """Raise BudgetError if the rows and bytes that a table declares exceed the budget.

    Of whole rows: to ask for the size of a damaged column ends the process in pyarrow 26.
    """
    for group in groups:
        about = file.metadata.row_group(group)
        budget.claim(str(path), bytes=about.total_byte_size, items=about.num_rows)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Yield a `pyarrow.parquet.ParquetFile`.

    Raises SourceError if it is missing, no regular file or damaged, also if that shows in the
    block.
    """
    from pyarrow import ArrowException, parquet

    if not path.exists():
        raise SourceError(f"{path}: no such file")
    foreign.check_regular(path, error=SourceError)
    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError, ValueError, MemoryError) as e:
        raise SourceError(f"{path}: damaged, or not a parquet file ({first_line(e)})") from None
