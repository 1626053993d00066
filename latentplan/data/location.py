"""The place of a store: a folder of this machine, or a URL that fsspec supports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import FsspecStore, LocalStore

from latentplan import files
from latentplan.errors import MissingDependency, StoreError
from latentplan.urls import is_url, local, public, public_text


class Location(Protocol):
    """Files below one place, by their name there (`episode/end/zarr.json`)."""

    lockable: bool  # whether `lock` keeps others out

    def exists(self) -> bool:
        """Return whether anything is there."""

    def read(self, name: str) -> bytes:
        """Return what a file holds; FileNotFoundError if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Write a new file atomically; it is on the disk before this returns."""

    def replace(self, name: str, content: bytes) -> None:
        """Write a file atomically in place of the one there; on the disk before this returns."""

    def remove(self, name: str) -> None:
        """Remove a file."""

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the bytes of every file in and below a folder, by name."""

    def zarr(self, *, read_only: bool) -> Store:
        """Return the place as a zarr store."""

    def lock(self) -> Any:
        """Return a lock against other writers until its `close()`; StoreError if one has it."""

    def repair(self) -> None:
        """Remove the unfinished files of an interrupted writer."""

    def creating(self) -> Any:
        """Return a context with a location to fill, which becomes this one at its end."""


def locate(path: Path | str) -> Location:
    """Return the location of a path or a URL (`s3://...`, `memory://...`; `file://` is a path).

    Raises MissingDependency if the URL's file system needs a package that is not there,
    StoreError if no file system has that name or it refuses, ConfigError for a file on a machine
    other than this.
    """
    text = str(path)
    if "\0" in text:
        raise StoreError(f"{public(text)!r}: has a character that no path can have; correct it")
    if is_url(text) and text.partition("://")[0].lower() != "file":
        return Remote(text)
    return Folder(local(path, where="store"))


class Folder:
    """A folder of this machine."""

    lockable = True

    def __init__(self, path: Path) -> None:
        """Take the path; nothing is touched."""
        self.path = path

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def exists(self) -> bool:
        """Return whether anything is there."""
        return os.path.lexists(self.path)

    def read(self, name: str) -> bytes:
        """Return what a file holds."""
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        """Write aside, sync, rename: one atomic step."""
        file = self.path / name
        file.parent.mkdir(exist_ok=True)  # not its parents: a deleted store is not made again
        files.write(file, content)

    def replace(self, name: str, content: bytes) -> None:
        """Write aside, sync, rename: one atomic step."""
        self.write(name, content)

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.path / name).unlink()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the bytes of every file in and below a folder, by name."""
        found = {}
        for file in sorted((self.path / folder).rglob("*")):
            try:
                if file.is_file() and not files.is_clutter(file.name):
                    found[file.relative_to(self.path).as_posix()] = file.stat().st_size
            except FileNotFoundError:
                continue  # a writer has just moved it
        return found

    def zarr(self, *, read_only: bool) -> Store:
        """Return the folder as a zarr store."""
        return _Durable(self.path, read_only=read_only)

    def lock(self) -> Any:
        """Return a lock that the kernel releases when the process ends."""
        try:
            return files.lock(self.path / ".lock")
        except BlockingIOError:
            raise StoreError(
                f"{self}: another process is writing to it; wait for it, or use another path"
            ) from None
        except OSError as e:
            raise StoreError(f"{self}: cannot be written ({e.strerror or e})") from None

    def repair(self) -> None:
        """Remove files that were not renamed into place."""
        files.remove_leftovers(self.path.parent)  # of a killed creation
        for leftover in self.path.rglob("*.partial*"):
            if leftover.suffix == ".partial" or files.PARTIAL.fullmatch(leftover.name):
                if not leftover.is_dir():  # an array of such a name
                    leftover.unlink()

    @contextmanager
    def creating(self) -> Iterator[Folder]:
        """Yield a folder beside this one, renamed at the end."""
        with files.making(self.path) as partial:
            yield Folder(partial)


class Remote:
    """A place that fsspec reaches, where an object appears whole but nothing can be locked.

    Two writers notice each other when one writes a file that the other has already written.
    """

    lockable = False

    def __init__(self, url: str) -> None:
        """Find the file system; nothing is touched."""
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as e:
            scheme = self.url.partition("://")[0]
            package = "latentplan[s3]" if scheme == "s3" else f"fsspec[{scheme}]"
            raise MissingDependency(
                f'{self}: {public_text(str(e))}; pip install "{package}"'
            ) from None
        except ValueError as e:
            raise StoreError(f"{self}: {public_text(str(e))}") from None
        except Exception as e:  # some connect here, and each has errors of its own
            raise self._unreached(e) from None
        self._root = self._root.rstrip("/")

    def __str__(self) -> str:
        """Return the URL as it may be shown."""
        return public(self.url)

    def exists(self) -> bool:
        """Return whether anything is there."""
        with self._reached():
            return bool(self._files.exists(self._root))

    def read(self, name: str) -> bytes:
        """Return what an object holds."""
        with self._reached():
            return bytes(self._files.cat_file(self._at(name)))

    def write(self, name: str, content: bytes) -> None:
        """Write an object that does not exist yet."""
        with self._reached():
            try:
                self._files.pipe_file(self._at(name), content, mode="create")
            except FileExistsError:
                raise StoreError(f"{self}: {name} is there: another process is writing") from None

    def replace(self, name: str, content: bytes) -> None:
        """Write an object in place of the one there."""
        with self._reached():
            try:
                self._files.pipe_file(self._at(name), content)
            except Exception:  # it may be there all the same, if the answer alone was lost
                if self._files.cat_file(self._at(name)) != content:
                    raise

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._reached():
            self._files.rm_file(self._at(name))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the bytes of every object in and below a folder, by name."""
        with self._reached():
            found = self._files.find(self._at(folder), detail=True)
        start = len(self._at("x")) - 1
        return {
            name[start:]: int(about["size"])
            for name, about in sorted(found.items())
            if not files.is_clutter(name.rpartition("/")[2])
        }

    def zarr(self, *, read_only: bool) -> Store:
        """Return the place as a zarr store."""
        with self._reached():
            return FsspecStore.from_url(
                self.url, read_only=read_only, storage_options={"use_listings_cache": False}
            )

    def lock(self) -> Any:
        """Return a lock that excludes nobody; see the class."""
        return _Unlocked()

    def repair(self) -> None:
        """Do nothing: an object is there whole or not at all."""

    @contextmanager
    def creating(self) -> Iterator[Remote]:
        """Yield this place itself; its attributes, which make it a store, are written last."""
        yield self

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Raise StoreError for any error of a file system; each has its own classes."""
        try:
            yield
        except (StoreError, FileNotFoundError):
            raise
        except Exception as e:
            raise self._unreached(e) from None  # its text may hold the URL's password

    def _unreached(self, error: Exception) -> StoreError:
        text = f"{type(error).__name__}: {public_text(str(error))}"
        return StoreError(f"{self}: cannot be reached ({text})")


class _Unlocked:
    def close(self) -> None:
        """Do nothing."""


class _Durable(LocalStore):
    """Files that are replaced atomically (as zarr does) and are on the disk before the next."""

    async def set(self, key: str, value: Buffer) -> None:
        await super().set(key, value)
        with (self.root / key).open("rb") as f:
            os.fsync(f.fileno())


@contextmanager
def writing(location: Location) -> Iterator[None]:
    """Raise StoreError for a full disk or a missing permission."""
    try:
        yield
    except OSError as e:
        if e.errno in files.FULL:
            reason = "the disk is full; free some space and run the same again"
        else:
            reason = f"cannot be written ({e.strerror or public_text(str(e))})"
        raise StoreError(
            f"{location}: {reason}; the episodes already stored are kept"
        ) from (e if location.lockable else None)  # its text may hold a URL's password
