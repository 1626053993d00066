"""What every importer promises, over each registered one that a sample can be written for here."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bag_writer
import calvin_writer
import lerobot_writer
import minari_writer
import numpy as np
import pytest
import rlbench_writer
import robomimic_writer

from latentplan import config, registry
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, LatentplanError, SourceError
from latentplan.protocols import Source
from latentplan.types import Spec

SAMPLES: dict[str, Callable[[Path], Path]] = {  # each writes two episodes or more
    "bag": bag_writer.write,
    "calvin": calvin_writer.write,
    "lerobot": lerobot_writer.dataset,
    "minari": minari_writer.write,
    "rlbench": rlbench_writer.write_rlbench,
    "robomimic": robomimic_writer.write,
}

OPEN = ("Lerobot", "Minari")  # formats that do not record what an action's numbers are


@pytest.fixture(scope="module", params=sorted(SAMPLES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the class of a source and the folder of its sample."""
    folder = tmp_path_factory.mktemp(request.param) / "sample"
    return registry.get("source", request.param), SAMPLES[request.param](folder)


def opened(made: Any) -> Source:
    kind, folder = made
    source: Source = kind(folder, kind.Config())
    return source


def test_every_source_is_registered_and_has_settings() -> None:
    for name in registry.names("source"):
        kind = registry.get("source", name)
        values = config.to_values(kind.Config())
        assert config.from_values(kind.Config, values) == kind.Config()
        assert (kind.__doc__ or "").startswith("A Source ")


def test_episodes_fit_the_spec_and_come_back_from_a_store(made: Any, tmp_path: Path) -> None:
    source = opened(made)
    assert len(source) >= 2
    assert Spec.from_json(json.loads(json.dumps(source.spec.to_json()))) == source.spec
    with ZarrStore.create(tmp_path / "a.zarr", source.spec, settings=source.settings) as store:
        for index in range(len(source)):
            store.append(source.episode(index))
    with ZarrStore.open(tmp_path / "a.zarr", spec=source.spec) as store:
        for index in range(len(source)):
            found, wanted = store.episode(index), source.episode(index)
            np.testing.assert_array_equal(found.actions, wanted.actions, strict=True)
            for key, value in wanted.observations.items():
                np.testing.assert_array_equal(found.observations[key], value, strict=True)
            assert (found.labels, found.info) == (wanted.labels, wanted.info)


def test_actions_are_within_their_bounds_and_say_their_convention(made: Any) -> None:
    source = opened(made)
    convention = source.spec.action.convention
    assert convention is not None or type(source).__name__ in OPEN
    low, high = np.array(source.spec.action.low), np.array(source.spec.action.high)
    for index in range(len(source)):
        actions = source.episode(index).actions
        assert (actions >= low - 1e-6).all() and (actions <= high + 1e-6).all()
        gripper = convention.gripper if convention else ""
        if gripper in ("close_is_-1", "close_is_+1"):
            assert set(np.unique(actions[:, -1])) <= {-1.0, 1.0}


def test_any_process_reads_any_episode_in_any_order(made: Any) -> None:
    one, other = opened(made), opened(made)
    last = len(one) - 1
    before = one.episode(last)
    one.episode(0)
    for found in (one.episode(last), other.episode(last)):
        assert pickle.dumps(found) == pickle.dumps(before)


def test_settings_are_plain_and_do_not_say_where_the_data_lies(made: Any) -> None:
    source, (kind, folder) = opened(made), made
    text = json.dumps(source.settings)
    assert str(folder) not in text
    assert all(name in text for name in config.to_values(kind.Config()))


def test_keys_choose_the_observations(made: Any) -> None:
    (kind, folder), whole = made, opened(made)
    every = list(whole.spec.observation)
    assert len(every) >= (1 if kind.__name__ == "Minari" else 2)
    for keys in ([every[0]], every[::-1]):
        source = kind(folder, kind.Config(), keys=keys)
        assert list(source.spec.observation) == keys and len(source) == len(whole)
        assert set(source.spec.privileged) == set(whole.spec.privileged) & set(keys)
        assert source.spec.action == whole.spec.action and source.settings == whole.settings
        found, wanted = source.episode(1), whole.episode(1)
        assert list(found.observations) == keys
        for key in keys:
            np.testing.assert_array_equal(found.observations[key], wanted.observations[key])
        np.testing.assert_array_equal(found.actions, wanted.actions)
        assert (found.labels, found.info) == (wanted.labels, wanted.info)
    with pytest.raises(ConfigError, match="import.keys: no observation 'nothing'") as refused:
        kind(folder, kind.Config(), keys=[every[0], "nothing"])
    listed = str(refused.value).rpartition(": ")[2]
    assert sorted(listed.split(", ")) == sorted(every)
    with pytest.raises(ConfigError, match="import.keys: none is given"):
        kind(folder, kind.Config(), keys=[])


def spoil_bag(folder: Path) -> tuple[str, str]:
    for file in folder.iterdir():
        file.unlink()
    bag = bag_writer
    said = [*bag.recording(), *(bag.image(0.1 * i, "/side/image_raw", i) for i in range(3))]
    cut = [bag.image(0.1 * i, "/side/image_raw", i, bytes=10) for i in range(3, 10)]
    bag.save(folder / "run.bag", [*said, *cut])
    return "side", "q"


def spoil_calvin(folder: Path) -> tuple[str, str]:
    for file in (folder / "training").glob("episode_*.npz"):
        with np.load(file) as arrays:
            changed = {**arrays, "rgb_static": np.array([None, {}])}
        np.savez(file, **changed)
    return "rgb_static", "robot_obs"


def spoil_lerobot(folder: Path) -> tuple[str, str]:
    shutil.rmtree(folder / "videos")
    return "top", "state"


def spoil_minari(folder: Path) -> tuple[str, str]:
    shutil.rmtree(folder)
    minari_writer.write(folder, nested=True)
    return _elsewhere(folder / "data/main_data.hdf5", "observations/_index_1", "achieved.position")


def spoil_rlbench(folder: Path) -> tuple[str, str]:
    for file in folder.rglob("wrist_rgb/*.png"):
        file.write_bytes(b"damaged")
    return "wrist_rgb", "front_rgb"


def spoil_robomimic(file: Path) -> tuple[str, str]:
    return _elsewhere(file, "obs/agentview_image", "object")


def _elsewhere(path: Path, name: str, other: str) -> tuple[str, str]:
    """Make an array of every episode one that is refused."""
    import h5py

    with h5py.File(path, "a") as file:
        parent = file.get("data", file)
        for episode in parent:
            del parent[episode][name]
            parent[episode][name] = h5py.ExternalLink("other.hdf5", "/x")
    return name.rpartition("/")[2], other


SPOIL = {name.removeprefix("spoil_"): f for name, f in globals().items() if "spoil_" in name}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_what_is_not_asked_for_is_neither_checked_nor_read(name: str, tmp_path: Path) -> None:
    kind, folder = registry.get("source", name), SAMPLES[name](tmp_path / "sample")
    spoilt, other = SPOIL[name](folder)
    for keys in ([spoilt], [spoilt, other], None):
        with pytest.raises(SourceError):
            source = kind(folder, kind.Config(), keys=keys)
            source.episode(0)
    source = kind(folder, kind.Config(), keys=[other])
    for index in range(len(source)):
        assert list(source.episode(index).observations) == [other]


def test_an_empty_folder_and_none_are_refused(made: Any, tmp_path: Path) -> None:
    kind, _ = made
    for where in (tmp_path, tmp_path / "none"):
        with pytest.raises(SourceError, match=str(where)):
            kind(where, kind.Config())


def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    made: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kind, folder = made
    copy = tmp_path / "copy"
    (shutil.copytree if folder.is_dir() else shutil.copy)(folder, copy)
    files = {f.suffix: f for f in copy.rglob("*") if f.is_file()} if folder.is_dir() else {"": copy}
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    request.addfinalizer(lambda: (signal.alarm(0), signal.signal(signal.SIGALRM, before)))
    refused = 0
    for file in files.values():
        content = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        signal.alarm(60)
        try:
            source = kind(copy, kind.Config())
            for index in range(len(source)):
                source.episode(index)
        except LatentplanError:
            refused += 1
        file.unlink()
        file.write_bytes(content)
    assert refused
