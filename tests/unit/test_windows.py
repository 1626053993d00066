from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latentplan.data import layout
from latentplan.data.store import ZarrStore
from latentplan.data.windows import Windows, is_test
from latentplan.errors import ConfigError, StoreError
from latentplan.types import ActionSpec, ArraySpec, Batch, Episode, Spec

SPEC = Spec(
    observation={
        "rgb": ArraySpec((4, 4, 3), "uint8"),
        "place": ArraySpec((2,), "float32", "episode and row: which one this is"),
    },
    action=ActionSpec((-1e3,) * 2, (1e3,) * 2),
    privileged=("place",),
)


def made(path: Path, lengths: list[int]) -> ZarrStore:
    """Return a store in which every row says where it is."""
    with ZarrStore.create(path, SPEC) as store:
        for number, length in enumerate(lengths):
            place = np.stack([np.full(length + 1, number), np.arange(length + 1)], axis=1)
            grey = (place.sum(axis=1) % 251).astype(np.uint8)
            store.append(
                Episode(
                    observations={
                        "rgb": np.broadcast_to(grey[:, None, None, None], (length + 1, 4, 4, 3)),
                        "place": place.astype(np.float32),
                    },
                    actions=place[:-1].astype(np.float32),
                    rewards=np.zeros(length, np.float32),
                )
            )
    return ZarrStore.open(path)


def places(batch: Batch) -> list[tuple[int, int]]:
    return [(int(e), int(t)) for e, t in batch.observations["place"][:, 0]]


def assert_same(found: Batch, wanted: Batch) -> None:
    assert torch.equal(found.actions, wanted.actions)
    for key, value in wanted.observations.items():
        assert torch.equal(found.observations[key], value)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZarrStore:
    return made(tmp_path_factory.mktemp("windows") / "a.zarr", [3, 7, 5, 1, 6, 4, 8, 2, 5, 5, 9])


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    length=st.integers(1, 6),
    batch=st.integers(1, 40),
    seed=st.integers(0, 9),
    split=st.sampled_from(["train", "test"]),
    number=st.integers(0, 99),
)
def test_a_window_is_a_stretch_of_one_episode_of_the_split(
    store: ZarrStore, length: int, batch: int, seed: int, split: str, number: int
) -> None:
    windows = Windows(
        store, length=length, batch=batch, seed=seed, split=split, test_fraction=0.3,
        keys=("rgb", "place"),
    )  # fmt: skip
    got = windows[number]
    place = got.observations["place"]
    assert place.shape == (batch, length, 2)
    assert got.observations["rgb"].dtype == torch.uint8
    first = place[:, :1]
    steps = torch.arange(length).float()
    assert torch.equal(place[..., 0], first[..., 0].expand(-1, length))
    assert torch.equal(place[..., 1], first[..., 1] + steps)
    assert torch.equal(got.actions, place[:, :-1])  # the action of a row leads on from it
    assert torch.equal(got.observations["rgb"][..., 0, 0, 0].float(), place.sum(-1) % 251)
    held_out = is_test(place[:, 0, 0].numpy().astype(int), 0.3)
    assert (held_out == (split == "test")).all()


def test_an_epoch_has_every_window_once_and_epochs_differ(store: ZarrStore) -> None:
    windows = Windows(store, length=3, batch=7, keys=("place",))
    stream = windows.batches()
    seen: list[tuple[int, int]] = []
    while len(seen) < 3 * len(windows):
        seen += places(next(stream))
    epochs = [seen[i * len(windows) : (i + 1) * len(windows)] for i in range(3)]
    lengths = np.diff(store.ends, prepend=0)
    every = [
        (e, t) for e in range(len(store)) if not is_test(np.array([e]), 0.1)[0]
        for t in range(lengths[e] - 2)
    ]  # fmt: skip
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2]) == sorted(every)
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])


def test_batch_number_i_is_the_same_from_any_start(store: ZarrStore) -> None:
    stream = Windows(store, length=2, batch=9, seed=4).batches()
    first = [next(stream) for _ in range(12)]
    for start in (11, 5, 0):
        resumed = Windows(store, length=2, batch=9, seed=4).batches(start)
        for wanted in first[start:]:
            assert_same(next(resumed), wanted)
    other = Windows(store, length=2, batch=9, seed=5)
    assert not torch.equal(other[0].actions, first[0].actions)


def test_arrays_beyond_the_budget_give_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 4 * 4 * 3 * 4)  # 4 pictures a chunk
    store = made(tmp_path / "a.zarr", [15] * 40)  # 160 chunks
    in_memory = Windows(store, length=3, batch=8, keys=("rgb", "place"))
    small = 640 * (8 + 8) + 16 * 4 * 48  # the small arrays, and 16 chunks of pictures
    from_disk = Windows(store, length=3, batch=8, keys=("rgb", "place"), budget=small)
    for number in list(range(60)) + [3, 2]:
        assert_same(from_disk[number], in_memory[number])
    with pytest.raises(ConfigError, match="Windows.budget: .* a batch may need 3072;"):
        Windows(store, length=3, batch=8, budget=6000)


def test_several_cameras_beyond_the_budget_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "CHUNK_BYTES", 4 * 4 * 4 * 3)
    rng = np.random.default_rng(0)
    cameras = {"wide": (4, 4, 3), "wrist": (4, 4, 3), "near": (2, 2, 3)}
    spec = Spec({k: ArraySpec(s, "uint8") for k, s in cameras.items()}, SPEC.action)
    with ZarrStore.create(tmp_path / "a.zarr", spec) as store:
        for _ in range(40):
            rows = {k: rng.integers(0, 256, (16, *s), np.uint8) for k, s in cameras.items()}
            actions = rng.normal(size=(15, 2)).astype(np.float32)
            store.append(Episode(rows, actions, np.zeros(15, np.float32)))
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        in_memory = Windows(store, length=3, batch=8)
        from_disk = Windows(store, length=3, batch=8, budget=640 * (8 + 108) // 2)
        for number in range(40):
            assert_same(from_disk[number], in_memory[number])


def test_by_default_no_privileged_observation_is_loaded(store: ZarrStore) -> None:
    assert set(Windows(store, length=2, batch=2)[0].observations) == {"rgb"}


@given(count=st.integers(2, 3000), fraction=st.floats(0.02, 0.5))
def test_held_out_episodes_are_spread_evenly(count: int, fraction: float) -> None:
    held_out = is_test(np.arange(count), fraction)
    assert abs(held_out.sum() - fraction * count) <= 4
    assert 0 < held_out.sum() < count  # two episodes are enough for both splits
    assert (held_out == is_test(np.arange(count + 7), fraction)[:count]).all()


def test_what_cannot_be_served_is_told(store: ZarrStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is empty; collect"):
        Windows(made(tmp_path / "empty.zarr", []), length=2, batch=2)
    with pytest.raises(StoreError, match="none of its 9 train episodes .of 11. has 11 obs"):
        Windows(store, length=11, batch=2)
    with pytest.raises(ConfigError, match="no observation 'rbg'; the store has: rgb, place"):
        Windows(store, length=2, batch=2, keys=("rbg",))
    for wrong in ({"length": 0}, {"batch": 0}, {"test_fraction": 1.5}):
        with pytest.raises(ConfigError, match=f"Windows.{next(iter(wrong))}"):
            Windows(store, **{"length": 2, "batch": 2, **wrong})
