"""A store as a LeRobot data set, version 3 (its layout: `data/sources/lerobot_files.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.data.export import arrow, statistics
from latentplan.data.export.statistics import Statistics
from latentplan.data.export.video import Videos
from latentplan.data.sources.lerobot_files import EPISODES, INFO, OURS, TASKS, needed
from latentplan.errors import ConfigError, StoreError, check_range
from latentplan.files import making
from latentplan.types import Array, ArraySpec, Episode, Spec

MIB = 1 << 20
FILES = 1000  # in a chunk folder
ROWS = 256  # of meta/episodes that are packed together
PATTERN = "chunk-{chunk_index:03d}/file-{file_index:03d}"
COUNTERS = {  # features that every data set has
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
ENDS = {"next.reward": "float32", "next.done": "bool", "next.truncated": "bool"}


@dataclass(frozen=True)
class Config:
    """The encoding of images, and the size of files."""

    video: bool = True  # images as mp4, lossy; else as PNG in the tables, exact
    codec: str = "libsvtav1"  # of the videos: libsvtav1 (LeRobot's own), libx264 or libx265
    crf: int = 30  # quality of the videos: smaller is better; 30 is LeRobot's
    gop: int = 2  # frames between key frames: few, for random access; 2 is LeRobot's
    robot: str = ""  # value of robot_type
    data_mib: int = 100  # MiB of a table's file before a new one begins
    video_mib: int = 200  # MiB of a video's file before a new one begins

    def __post_init__(self) -> None:
        """Raise ConfigError if a setting is out of its range."""
        if self.codec not in ("libsvtav1", "libx264", "libx265"):
            raise ConfigError(
                f"Export.codec: {self.codec!r} is not one of libsvtav1, libx264, libx265"
            )
        check_range("Export.crf", self.crf, 0, 63)
        check_range("Export.gop", self.gop, 1, 1000)
        check_range("Export.data_mib", self.data_mib, 1)
        check_range("Export.video_mib", self.video_mib, 1)


class LerobotWriter:
    """A data set in a folder that episodes are appended to; a context manager.

    An episode of L actions becomes L + 1 frames: the last one repeats the last action, since
    LeRobot wants as many actions as observations. Rewards and ends are `next.reward`, `next.done`
    (terminated) and `next.truncated`. A frame's task is the text of the first label that covers
    it, or "". Privileged observations are not called `observation.*`, so that no policy trains on
    them. Statistics are of numbers, vectors and images.
    """

    def __init__(self, folder: Path, spec: Spec, *, fps: int, config: Config | None = None) -> None:
        """Prepare to write below the empty `folder`; use `writing` instead."""
        self.config, self.folder, self.spec, self.fps = config or Config(), folder, spec, fps
        self.named = {key: _feature(key, spec) for key in spec.observation}
        if len(set(self.named.values())) < len(self.named):
            raise ConfigError(f"spec.observation: {sorted(self.named)} become the same name")
        images = [key for key, a in spec.observation.items() if is_image(a)]
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []  # of meta/episodes, the latest
        self._tables: list[Any] = []  # of meta/episodes, the earlier rows: a tenth of their size
        self._statistics: dict[str, Statistics] = {}  # of all episodes so far
        self._table: Any = None  # the ParquetWriter of the file that is open
        self._file, self._episodes, self._frames = -1, 0, 0
        self._videos = {
            key: Videos(
                str(folder / "videos" / self.named[key] / f"{PATTERN}.mp4"),
                chunk=FILES,
                fps=fps,
                codec=self.config.codec,
                crf=self.config.crf,
                gop=self.config.gop,
                file_bytes=self.config.video_mib * MIB,
            )
            for key in (images if self.config.video else ())
        }

    def append(self, episode: Episode) -> None:
        """Add one episode."""
        columns, steps = self._columns(episode), len(episode) + 1
        found = {n: statistics.of_numbers(v) for n, v in columns.items() if v.ndim <= 2}
        row: dict[str, Any] = {"episode_index": self._episodes, "length": steps}
        row["tasks"] = sorted(set(_texts(episode)))
        images: dict[str, Array] = {}
        for key, values in episode.observations.items():
            if not is_image(self.spec.observation[key]):
                continue
            name = self.named[key]
            found[name] = statistics.of_images(values)
            if key not in self._videos:
                images[name] = values
                continue
            piece = self._videos[key].append(values)
            row |= {
                f"videos/{name}/chunk_index": piece.file // FILES,
                f"videos/{name}/file_index": piece.file % FILES,
                f"videos/{name}/from_timestamp": piece.start,
                f"videos/{name}/to_timestamp": piece.stop,
            }
        self._write(columns, images)
        row |= {
            "data/chunk_index": self._file // FILES,
            "data/file_index": self._file % FILES,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + steps,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for name, part in found.items():
            before = [self._statistics[name]] if name in self._statistics else []
            self._statistics[name] = statistics.of_all([*before, part])
            row |= {f"stats/{name}/{kind}": value.tolist() for kind, value in part.items()}
        self._frames += steps
        self._episodes += 1
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._pack()

    def finish(self) -> None:
        """Close the files and write what describes them."""
        import pyarrow
        from pyarrow import parquet

        if not self._episodes:
            raise StoreError(f"{self.folder.name}: there is no episode to export")
        self.close()
        folder = self.folder / EPISODES / "chunk-000"
        folder.mkdir(parents=True)
        self._pack()
        parquet.write_table(pyarrow.concat_tables(self._tables), folder / "file-000.parquet")
        parquet.write_table(arrow.tasks_table(self._tasks), self.folder / TASKS)
        together = self._statistics.items()
        _write_json(
            self.folder / "meta/stats.json",
            {name: {k: v.tolist() for k, v in values.items()} for name, values in together},
        )
        names = {feature: key for key, feature in self.named.items()}
        _write_json(self.folder / OURS, {"spec": self.spec.to_json(), "observation": names})
        _write_json(self.folder / INFO, self._info())

    def close(self) -> None:
        """Close the files."""
        for video in self._videos.values():
            video.close()
        if self._table is not None:
            self._table.close()
            self._table = None

    def _pack(self) -> None:
        import pyarrow

        if self._rows:
            self._tables.append(pyarrow.Table.from_pylist(self._rows))
            self._rows = []

    def _columns(self, episode: Episode) -> dict[str, Array]:
        """Return the columns (L + 1, ...) of an episode, without images."""
        steps, index = len(episode) + 1, self._episodes
        texts = _texts(episode)
        for text in texts:
            self._tasks.setdefault(text, len(self._tasks))
        over = np.zeros((2, steps), bool)  # terminated, truncated
        over[:, -2:] = [[episode.terminated], [episode.truncated]]
        columns = {
            self.named[key]: values
            for key, values in episode.observations.items()
            if not is_image(self.spec.observation[key])
        }
        return columns | {
            "action": np.concatenate([episode.actions, episode.actions[-1:]]),
            "next.reward": np.append(episode.rewards, np.float32(0)),
            "next.done": over[0],
            "next.truncated": over[1],
            "timestamp": (np.arange(steps) / self.fps).astype(np.float32),
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, index),
            "index": self._frames + np.arange(steps),
            "task_index": np.array([self._tasks[text] for text in texts]),
        }

    def _write(self, columns: Mapping[str, Array], images: Mapping[str, Array]) -> None:
        import pyarrow
        from pyarrow import parquet

        arrays = {name: arrow.numbers(values) for name, values in columns.items()}
        arrays |= {name: arrow.pngs(values) for name, values in images.items()}
        table = pyarrow.table(arrays)
        if self._table is None or self._written() >= self.config.data_mib * MIB:
            if self._table is not None:
                self._table.close()
            self._file += 1
            path = self._data_file()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._table = parquet.ParquetWriter(path, table.schema, compression="snappy")
        self._table.write_table(table, row_group_size=len(table))

    def _data_file(self) -> Path:
        place = PATTERN.format(chunk_index=self._file // FILES, file_index=self._file % FILES)
        return self.folder / "data" / f"{place}.parquet"

    def _written(self) -> int:
        return self._data_file().stat().st_size

    def _info(self) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for key, spec in self.spec.observation.items():
            features[self.named[key]] = self._described(spec)
        names = [f"action_{i}" for i in range(self.spec.action.size)]
        meanings = self.spec.action.meaning.split(", ")
        features["action"] = _number("float32", (self.spec.action.size,))
        features["action"]["names"] = meanings if len(meanings) == self.spec.action.size else names
        features |= {name: _number(dtype, (1,)) for name, dtype in (ENDS | COUNTERS).items()}
        return {
            "codebase_version": "v3.0",
            "robot_type": self.config.robot or None,
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES,
            "data_files_size_in_mb": self.config.data_mib,
            "video_files_size_in_mb": self.config.video_mib,
            "fps": self.fps,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": f"data/{PATTERN}.parquet",
            "video_path": f"videos/{{video_key}}/{PATTERN}.mp4" if self._videos else None,
            "features": features,
        }

    def _described(self, spec: ArraySpec) -> dict[str, Any]:
        if not is_image(spec):
            return _number(spec.dtype, spec.shape or (1,))
        height, width, _ = spec.shape
        feature: dict[str, Any] = {
            "dtype": "video" if self.config.video else "image",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
        }
        if self.config.video:
            codecs = {"libsvtav1": "av1", "libx264": "h264", "libx265": "hevc"}
            feature["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": codecs[self.config.codec],
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": self.fps,
                "video.channels": 3,
                "has_audio": False,
            }
        return feature


@contextmanager
def writing(
    out: Path, spec: Spec, *, fps: int, config: Config | None = None
) -> Iterator[LerobotWriter]:
    """Yield a writer; its data set appears at `out` if the block succeeds, else nothing does.

    Raises StoreError if something is at `out`, MissingDependency without pyarrow and av.
    """
    needed(f"export to {out}")
    if out.exists():
        raise StoreError(f"{out}: is there already; choose another folder, or delete it")
    with making(out) as partial:
        writer = LerobotWriter(partial, spec, fps=fps, config=config)
        try:
            yield writer
            writer.finish()
        except BaseException:
            with suppress(Exception):  # closing a file on a full disk fails as writing did
                writer.close()
            raise


def is_image(spec: ArraySpec) -> bool:
    """Return whether rows are colour images (h, w, 3) uint8; other arrays are kept as numbers."""
    return spec.dtype == "uint8" and len(spec.shape) == 3 and spec.shape[2] == 3


def whole_fps(spec: Spec, fps: int | None = None) -> int:
    """Return frames a second: `fps`, else 1 / dt; ConfigError if that is not a whole number."""
    if fps is not None:
        check_range("export.fps", fps, 1, 10_000)
        return fps
    if spec.dt is None:
        raise ConfigError("export.fps: the store's steps have no fixed time; set frames a second")
    rate = 1 / spec.dt
    if abs(rate - round(rate)) > 1e-6 * rate or round(rate) < 1:
        raise ConfigError(
            f"export.fps: the store has {rate:g} steps a second, not a whole number; give one"
        )
    return round(rate)


def _feature(key: str, spec: Spec) -> str:
    name = key.replace("/", ".")
    if key in spec.privileged:
        return f"privileged.{name}"
    return f"observation.{'images.' if is_image(spec.observation[key]) else ''}{name}"


def _texts(episode: Episode) -> list[str]:
    """Return the task of each frame."""
    texts = [""] * (len(episode) + 1)
    for label in reversed(episode.labels):
        stop = len(episode) if label.stop < 0 else label.stop
        texts[label.start : stop + 1] = [label.text] * (stop + 1 - label.start)
    return texts


def _number(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": None}


def _write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=4), encoding="utf-8")
