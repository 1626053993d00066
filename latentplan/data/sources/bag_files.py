"""Files of ROS 1 and ROS 2 bags (.bag, .mcap, .db3), and their messages."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from latentplan import foreign
from latentplan.errors import MissingDependency, SourceError
from latentplan.files import is_clutter

SUFFIXES = (".bag", ".mcap", ".db3")
METADATA = "metadata.yaml"  # in the folder of a ROS 2 bag


class Received(NamedTuple):
    """A message and the time of its recording."""

    topic: str
    recorded: int  # ns
    message: Any


def find(path: Path) -> list[Path]:
    """Return the bags at `path`: itself, or those in the folder, in the order of their names.

    A bag is a file, or a folder with a metadata.yaml. SourceError if there is none.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such bag")
    if _is_bag(path):
        return [path]
    if path.is_file():
        raise SourceError(f"{path}: is not a bag, need a {', '.join(SUFFIXES)} or a folder")
    inside = (inner for inner in path.iterdir() if not is_clutter(inner.name))
    found = sorted((inner for inner in inside if _is_bag(inner)), key=_natural)
    if not found:
        raise SourceError(f"{path}: holds no bag ({', '.join(SUFFIXES)}, or a ROS 2 bag's folder)")
    return found


class Bag:
    """An open bag: its topics, and their messages in the order in which they were recorded."""

    def __init__(self, path: Path, reader: Any) -> None:
        """Take an open rosbags.highlevel.AnyReader."""
        self.path, self._reader = path, reader
        # A topic that was announced and never written does not count.
        self.topics: dict[str, str] = {
            c.topic: c.msgtype for c in reader.connections if c.msgcount > 0
        }

    def messages(
        self, topics: Sequence[str], *, start: int | None = None, stop: int | None = None
    ) -> Iterator[Received]:
        """Yield the messages of `topics` that were recorded from `start` to before `stop`, ns."""
        wanted = [c for c in self._reader.connections if c.topic in topics and c.msgcount > 0]
        if not wanted:
            return
        with _damage(self.path):
            for connection, recorded, raw in self._reader.messages(wanted, start, stop):
                message = self._reader.deserialize(raw, connection.msgtype)
                yield Received(connection.topic, recorded, message)


@contextmanager
def opened(path: Path) -> Iterator[Bag]:
    """Yield the bag at `path`, read-only.

    Raises MissingDependency without rosbags, SourceError if the bag is damaged, also in the block,
    or a file of it is no regular one.
    """
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise MissingDependency(f'{path}: needs rosbags: pip install "latentplan[bags]"') from None
    for file in path.iterdir() if path.is_dir() else [path]:
        if file.exists() and not file.is_dir():
            foreign.check_regular(file, error=SourceError)
    with _damage(path):
        # Bags of ROS 2 before Iron hold no definitions; those of sensor messages never changed.
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    try:
        yield Bag(path, reader)
    finally:
        reader.close()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise SourceError for the errors of rosbags on damage."""
    import apsw
    from rosbags.highlevel import AnyReaderError
    from rosbags.rosbag1 import ReaderError as Ros1Error
    from rosbags.rosbag2 import ReaderError as Ros2Error
    from rosbags.serde import SerdeError
    from rosbags.typesys import TypesysError

    try:
        yield
    except (
        *(AnyReaderError, Ros1Error, Ros2Error, SerdeError, TypesysError, apsw.Error),
        *(OSError, EOFError, ValueError, struct.error, LookupError, AssertionError),
        *(ArithmeticError, TypeError, MemoryError, RecursionError),
    ) as e:
        why = f"{type(e).__name__}: {e}".rstrip(": ")
        advice = "rosbag reindex" if path.suffix == ".bag" else "ros2 bag reindex, or mcap recover"
        raise SourceError(f"{path}: damaged, or not a bag ({why}); {advice} may help") from None


def _is_bag(path: Path) -> bool:
    if path.is_dir():
        return (path / METADATA).is_file()
    return path.suffix in SUFFIXES


def _natural(path: Path) -> list[Any]:
    """Return a key that sorts run_2 before run_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
