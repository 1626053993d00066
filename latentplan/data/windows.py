"""Random windows of episodes, in batches for training: seeded, resumable, gathered all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, StoreError, check_range
from latentplan.types import Array, Batch, Spec, Training

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: its multiples fill [0, 1) evenly


HELD_OUT = Training().held_out  # share of episodes that training leaves out by default
OPTIONAL = ("rewards", "task", "segments")  # fields of Batch that are filled on request


def task_ids(store: ZarrStore, tasks: Sequence[str]) -> Array:
    """Return the task id (rows,) int64 at each observation; 0 outside the labels of `tasks`.

    If labels overlap, it is that of the later one.
    """
    id_of = {name: index for index, name in enumerate(tasks, start=1)}
    starts = np.concatenate([[0], store.ends[:-1]])
    found = np.zeros(int(store.ends[-1]) if len(store) else 0, np.int64)
    for number, label in sorted(store.labels(), key=lambda each: (each[0], each[1].start)):
        first, end = int(starts[number]), int(store.ends[number])
        stop = end if label.stop < 0 else first + label.stop + 1
        found[first + label.start : stop] = id_of.get(label.task, 0)
    return found


def is_test(episodes: Array, fraction: float) -> Array:
    """Return which episode numbers (n,) are held out, (n,) bool, about `fraction` of them.

    Multiplicative hashing (Knuth, The Art of Computer Programming 3, section 6.4): depends on the
    number alone, so an episode stays on its side when the store grows, and every stretch of
    1 / fraction numbers has one.
    """
    with np.errstate(over="ignore"):
        spread = episodes.astype(np.uint64) * GOLDEN
    return np.asarray(spread / 2.0**64 < fraction)


class Windows:
    """Endless batches of windows: T observations in a row of one episode and their T - 1 actions.

    Batch i is a function of (store, seed, i) alone, in any process, so that training resumes
    exactly. The stream is one random permutation of all windows after the other.

    Arrays that fit `budget` bytes are decoded once into memory. Of the others (images of a large
    store) the chunks used last are kept there, and the rest is read as needed.
    """

    def __init__(
        self,
        store: ZarrStore,
        *,
        length: int,
        batch: int,
        seed: int = 0,
        split: Literal["train", "test"] = "train",
        test_fraction: float = HELD_OUT,
        share: float = 1.0,
        keys: Sequence[str] | None = None,
        targets: Sequence[str] = (),
        reads: Sequence[str] = (),
        tasks: Sequence[str] = (),
        budget: int = 4 << 30,
        pin_memory: bool = False,
    ) -> None:
        """Prepare windows of `length` T, `batch` B of them at a time.

        Of the training episodes `share` is used, always the same ones. `keys` are the observations
        to load (None: all that are not privileged), `targets` the privileged ones that a learner
        declares, `reads` the optional fields of Batch to fill (rewards, task, segments), `tasks`
        the names that task ids stand for; `pin_memory` speeds up the copy to a CUDA device. Raises
        StoreError if the store has no such window, ConfigError if a number is out of range, a key
        or a field unknown, or a target not privileged.
        """
        check_range("Windows.length", length, 1)
        check_range("Windows.batch", batch, 1)
        check_range("Windows.test_fraction", test_fraction, 0.0, 1.0)
        check_range("Windows.share", share, 0.0, 1.0)
        spec = store.spec
        self.keys = tuple(k for k in spec.observation if k not in spec.privileged)
        if keys is not None:
            self.keys = tuple(keys)
        _check_names(spec, keys=self.keys, targets=targets, reads=reads)
        self.targets, self.reads = tuple(targets), tuple(reads)
        self.length, self.batch, self.seed = length, batch, seed
        self._pin = pin_memory
        held_out = is_test(np.arange(len(store)), test_fraction)
        left_out = is_test(np.arange(len(store)), 1 - share * (1 - test_fraction))
        episodes = held_out if split == "test" else ~(held_out | left_out)  # (episodes,) bool
        self._places = self._arrange(store, episodes=episodes, split=split)
        self._permutation = lru_cache(maxsize=2)(self._permute)

        self._gather = self._loaders(store, episodes=episodes, budget=budget)
        self._rows_of: dict[str, Array] = {}  # numbers (rows,) int64 that are made, not stored
        if "task" in reads:
            self._rows_of["task"] = task_ids(store, tasks)
        if "segments" in reads:
            lengths = np.diff(store.ends, prepend=0)
            self._rows_of["segments"] = np.repeat(np.arange(len(store)), lengths)

    def __len__(self) -> int:
        """Return the number of different windows."""
        return len(self._places)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield batch number `start`, `start + 1`, ... without end."""
        while True:
            yield self[start]
            start += 1

    def __getitem__(self, index: int) -> Batch:
        """Return batch number `index`: observations (B, T, ...) and actions (B, T - 1, A)."""
        return self._gathered(self._rows(self._chosen(index)))

    def _chosen(self, index: int) -> Array:
        """Return which windows (B,) batch number `index` is of."""
        epoch, rank = divmod(index * self.batch + np.arange(self.batch), len(self))
        chosen = np.empty(self.batch, np.int64)
        for number in np.unique(epoch):
            chosen[epoch == number] = self._permutation(int(number))[rank[epoch == number]]
        return chosen

    def _arrange(self, store: ZarrStore, *, episodes: Array, split: str) -> Array:
        """Return the first row of each window, in the `episodes` (n,) bool."""
        return _starts(store, self.length, episodes=episodes, split=split)

    def _rows(self, chosen: Array) -> Array:
        """Return the rows (B, T) of windows (B,)."""
        return np.asarray(self._places[chosen][:, None] + np.arange(self.length))

    def _gathered(self, rows: Array) -> Batch:
        """Return the batch of rows (B, T) of the store."""
        return Batch(
            observations={key: self._load(f"observation/{key}", rows) for key in self.keys},
            actions=self._load("action", rows[:, :-1]),
            rewards=self._load("reward", rows[:, :-1]) if "rewards" in self.reads else None,
            targets={key: self._load(f"observation/{key}", rows) for key in self.targets},
            **{name: torch.from_numpy(found[rows]) for name, found in self._rows_of.items()},
        )

    def _loaders(
        self, store: ZarrStore, *, episodes: Array, budget: int
    ) -> dict[str, Callable[[Array], Tensor]]:
        """Return what loads rows of each array, the smallest of them from memory."""
        found: dict[str, Callable[[Array], Tensor]] = {}
        wanted = np.repeat(episodes, np.diff(store.ends, prepend=0))  # (rows,) bool
        seen = dict.fromkeys((*self.keys, *self.targets))  # a PrivilegedModel reads a target itself
        names = ["action", *(f"observation/{key}" for key in seen)]
        names += ["reward"] if "rewards" in self.reads else []
        bytes_of = {name: store.row_bytes(name) for name in names}
        left = sum(bytes_of.values())
        for name in sorted(names, key=lambda name: bytes_of[name]):
            needed, of_all = int(wanted.sum()) * bytes_of[name], bytes_of[name] / left
            left -= bytes_of[name]
            if needed <= budget:
                found[name] = _InMemory(store, name, wanted=wanted)
                budget -= needed
            else:
                mine = int(budget * of_all)  # several cameras share what there is
                found[name] = _Chunks(
                    store, name, budget=mine, windows=self.batch, length=self.length
                )
                budget -= mine
        return found

    def _permute(self, epoch: int) -> Array:
        source = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
        return np.random.default_rng(source).permutation(len(self))

    def _load(self, name: str, rows: Array) -> Tensor:
        gathered = self._gather[name](rows.reshape(-1))
        windows = gathered.reshape(*rows.shape, *gathered.shape[1:])  # (b t) ... -> b t ...
        return windows.pin_memory() if self._pin else windows


def _check_names(
    spec: Spec, *, keys: Sequence[str], targets: Sequence[str], reads: Sequence[str]
) -> None:
    """Raise ConfigError for a name that the spec or `Batch` does not have."""
    for name, wanted in (("keys", keys), ("targets", targets)):
        for key in wanted:
            if key not in spec.observation:
                known = ", ".join(spec.observation)
                raise ConfigError(f"Windows.{name}: no observation {key!r}; the store has: {known}")
            if name == "targets" and key not in spec.privileged:
                raise ConfigError(f"Windows.targets: {key!r} is not privileged; read it")
    for name in reads:
        if name not in OPTIONAL:
            raise ConfigError(f"Windows.reads: {name!r} is not one of {', '.join(OPTIONAL)}")


class _InMemory:
    """The rows of an array that are wanted (rows,) bool."""

    def __init__(self, store: ZarrStore, name: str, *, wanted: Array) -> None:
        edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False)).tolist()
        runs = zip(edges[::2], edges[1::2], strict=True)  # of rows that follow each other
        self._place = torch.from_numpy(np.cumsum(wanted) - 1)  # of a store's row in ours
        sample = store.rows(name, 0, 1)
        rows = np.empty((int(wanted.sum()), *sample.shape[1:]), sample.dtype)
        filled = 0
        for start, stop in runs:
            rows[filled : filled + stop - start] = store.rows(name, start, stop)
            filled += stop - start
        self._rows = torch.from_numpy(rows)

    def __call__(self, rows: Array) -> Tensor:
        return self._rows.index_select(0, self._place[torch.from_numpy(rows)])


class _Chunks:
    """The chunks of an array that were used last, in a pool of `budget` bytes."""

    def __init__(
        self, store: ZarrStore, name: str, *, budget: int, windows: int, length: int
    ) -> None:
        self._store, self._name, self._size = store, name, store.chunk_rows(name)
        total = -(-int(store.ends[-1]) // self._size)
        chunk_bytes = self._size * store.row_bytes(name)
        slots = min(budget // chunk_bytes, total)
        most = min(windows * (-(-(length - 1) // self._size) + 1), total)  # chunks of a batch
        if slots < most:
            raise ConfigError(
                f"Windows.budget: {budget} bytes are left for {name}, a batch may need "
                f"{most * chunk_bytes}; give more memory or use smaller batches"
            )
        sample = store.rows(name, 0, 1)
        self._pool = torch.from_numpy(
            np.zeros((slots, self._size, *sample.shape[1:]), sample.dtype)
        )
        self._chunk_in = np.full(slots, -1)  # which chunk a slot holds
        self._slot_of = np.full(total, -1)  # the slot of a chunk, -1 for none
        self._used = np.zeros(slots, np.int64)  # when a slot was last asked for
        self._clock = 0

    def __call__(self, rows: Array) -> Tensor:
        chunk, row = np.divmod(rows, self._size)
        needed = np.unique(chunk)
        self._clock += 1
        here = self._slot_of[needed]
        self._used[here[here >= 0]] = self._clock
        missing = needed[here < 0]
        free = np.argsort(self._used, kind="stable")[: len(missing)]
        for number, slot in zip(missing.tolist(), free.tolist(), strict=True):
            values = self._store.rows(self._name, number * self._size, (number + 1) * self._size)
            self._pool[slot, : len(values)] = torch.from_numpy(values)
            if self._chunk_in[slot] >= 0:
                self._slot_of[self._chunk_in[slot]] = -1
            self._chunk_in[slot], self._slot_of[number], self._used[slot] = (
                number,
                slot,
                self._clock,
            )
        at = self._slot_of[chunk] * self._size + row
        return self._pool.flatten(0, 1).index_select(0, torch.from_numpy(at))


def _starts(store: ZarrStore, length: int, *, episodes: Array, split: str) -> Array:
    """Return the first rows (n,) of all windows of `length` in the `episodes` (n,) bool."""
    if len(store) == 0:
        raise StoreError(f"{store.path}: is empty; collect some episodes first")
    ends = store.ends[episodes]
    firsts = np.concatenate([[0], store.ends[:-1]])[episodes]
    counts = np.maximum(ends - firsts - length + 1, 0)  # windows an episode
    if counts.sum() == 0:
        raise StoreError(
            f"{store.path}: none of its {len(ends)} {split} episodes (of {len(store)}) has "
            f"{length} observations in a row; collect more or longer episodes"
        )
    before = np.cumsum(counts) - counts
    return np.asarray(np.repeat(firsts - before, counts) + np.arange(counts.sum()))
