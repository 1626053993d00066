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

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.errors import MissingDependency, SourceError
from latentplan.types import Array

INFO, TASKS, EPISODES, OURS = (
    "meta/info.json",
    "meta/tasks.parquet",
    "meta/episodes",
    "meta/latentplan.json",
)
CONVERTER = "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=NAME --root=FOLDER"


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
    features: dict[str, dict[str, Any]]
    patterns: dict[str, str]  # of paths below root: data_path, video_path
    tasks: dict[int, str]  # what task_index means
    episodes: list[dict[str, Any]]  # in their order: a row of meta/episodes each
    starts: dict[Path, int] = field(default_factory=dict)  # first frame in each file of data
    _last: Any = None  # the row groups read last: an episode may share them with the next

    def data(self, index: int) -> Path:
        """Return the parquet file that holds an episode."""
        return self._path("data_path", self.episodes[index], "data")

    def video(self, index: int, feature: str) -> Path:
        """Return the mp4 file that holds an episode's images."""
        episode = self.episodes[index]
        return self._path("video_path", episode, f"videos/{feature}", video_key=feature)

    def frames(self, index: int, columns: list[str]) -> Any:
        """Return the `pyarrow.Table` of an episode's frames."""
        path, episode = self.data(index), self.episodes[index]
        start, stop = (int(episode[f"dataset_{end}_index"]) for end in ("from", "to"))
        first = self.starts[path]
        with _damage(path):
            table, before = self._rows(path, start - first, stop - first, columns)
            rows = table.slice(start - first - before, stop - start)
            whose = rows["episode_index"].to_pylist()
        if whose != [index] * int(episode["length"]) or not whose:
            raise SourceError(
                f"{path}: rows {start - first} to {stop - first} are not the "
                f"{episode['length']} frames of episode {index}, as in {EPISODES}"
            )
        return rows

    def column(self, path: Path, name: str) -> Any:
        """Return a column of all frames in a file of data."""
        from pyarrow import parquet

        with _damage(path), parquet.ParquetFile(path) as file:
            if name not in file.schema_arrow.names:
                raise SourceError(f"{path}: has no column {name!r}")
            return file.read([name])[name]

    def _rows(self, path: Path, start: int, stop: int, columns: list[str]) -> tuple[Any, int]:
        """Return the row groups with rows start to stop, and the number of rows before them."""
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            known = file.schema_arrow.names
            for name in columns:
                if name not in known:
                    raise SourceError(f"{path}: has no column {name!r}")
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            ends = np.cumsum(sizes)
            groups = np.flatnonzero((ends > start) & (ends - sizes < stop)).tolist()
            asked = (path, groups, columns)
            if self._last is None or self._last[0] != asked:
                self._last = None  # frees the old rows before the new ones are read
                self._last = (asked, file.read_row_groups(groups, columns))
            return self._last[1], int(ends[groups[0]] - sizes[groups[0]]) if groups else 0

    def _path(self, pattern: str, episode: dict[str, Any], prefix: str, **names: str) -> Path:
        try:
            place = {k: int(episode[f"{prefix}/{k}"]) for k in ("chunk_index", "file_index")}
            return self.root / self.patterns[pattern].format(**place, **names)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as e:
            raise SourceError(
                f"{self.root / INFO}: {pattern} or {EPISODES} does not locate {prefix} of "
                f"episode {episode.get('episode_index')} lies ({type(e).__name__}: {e})"
            ) from None


def find(root: Path) -> Files:
    """Return the files at `root`; SourceError if it is not a whole v3 data set."""
    needed(str(root))
    info = _info(root)
    try:
        tables = sorted((root / EPISODES).rglob("*.parquet"))
        episodes = [row for table in tables for row in _table(table, skip="stats/")]
        files = Files(
            root,
            float(info["fps"]),
            dict(info["features"]),
            {k: str(info[k]) for k in ("data_path", "video_path") if info.get(k)},
            _tasks(root / TASKS),
            sorted(episodes, key=lambda row: int(row["episode_index"])),
        )
        numbers = [int(row["episode_index"]) for row in files.episodes]
        if not numbers or numbers != list(range(len(numbers))):
            raise SourceError(f"{root / EPISODES}: does not list episodes 0, 1, 2, ...")
        for index, row in enumerate(files.episodes):
            start = int(row["dataset_from_index"])
            path = files.data(index)
            files.starts[path] = min(start, files.starts.get(path, start))
    except (KeyError, TypeError, ValueError) as e:
        raise SourceError(
            f"{root / INFO}: it or {EPISODES} is not LeRobot's ({type(e).__name__}: {e})"
        ) from None
    return files


def ours(root: Path) -> dict[str, Any]:
    """Return what `latentplan export` recorded of the store; {} if another program wrote it."""
    path = root / OURS
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {"spec": values["spec"], "observation": dict(values["observation"])}
    except (OSError, ValueError, KeyError, TypeError) as e:
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
        if not (lists.is_list(values.type) or lists.is_fixed_size_list(values.type)):
            break
        values = values.flatten()
    flat = values.to_numpy(zero_copy_only=False)
    if len(flat) != count * int(np.prod(shape)):
        raise SourceError(f"{where}: {len(flat)} numbers in {count} rows, need rows of {shape}")
    return np.asarray(flat).reshape(count, *shape)


def _info(root: Path) -> dict[str, Any]:
    path = root / INFO
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder")
    if not path.exists():
        raise SourceError(f"{root}: has no {INFO}; not a LeRobot data set")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise SourceError(f"{path}: not LeRobot's ({type(e).__name__}: {e})") from None
    if version.startswith(("v1", "v2")):
        raise SourceError(
            f"{root}: is a LeRobot {version} data set, v3 is read; convert it: {CONVERTER}"
        )
    if not version.startswith("v3"):
        raise SourceError(f"{path}: codebase_version {version!r} is unknown; v3 is read")
    return dict(info)


def _tasks(path: Path) -> dict[int, str]:
    rows = _table(path) if path.exists() else []
    named = {}
    for row in rows:
        index = int(row.pop("task_index"))
        named[index] = str(next(iter(row.values()), ""))  # the index: unnamed, or "task"
    return named


def _table(path: Path, skip: str = "\0") -> list[dict[str, Any]]:
    """Return the rows of a parquet file, without columns that start with `skip`."""
    from pyarrow import parquet

    with _damage(path), parquet.ParquetFile(path) as file:
        columns = [n for n in file.schema_arrow.names if not n.startswith(skip)]
        return list(file.read(columns).to_pylist())


class _damage:  # noqa: N801
    """A context that raises SourceError for pyarrow's errors on a damaged file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from pyarrow import ArrowException

        if isinstance(error, FileNotFoundError):
            raise SourceError(f"{self.path}: no such file") from None
        if isinstance(error, ArrowException | OSError):
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise SourceError(f"{self.path}: damaged, or not a parquet file ({line})") from None
