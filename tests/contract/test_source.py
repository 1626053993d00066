"""What every registered source promises: the checks of conformance/source.py.

Each reads a sample that is written here; then come the promises of those that are shipped alone.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import bag_writer
import calvin_writer
import lerobot_writer
import minari_writer
import numpy as np
import pytest
import rlbench_writer
import robomimic_writer

from latentplan import registry
from latentplan.conformance.source import opened
from latentplan.conformance.suite import NotApplicable, Subject, checks, subject
from latentplan.errors import ConfigError, LatentplanError, SourceError

SAMPLES: dict[str, Callable[[Path], Path]] = {  # each writes two episodes or more
    "bag": bag_writer.write,
    "calvin": calvin_writer.write,
    "lerobot": lerobot_writer.dataset,
    "minari": minari_writer.write,
    "rlbench": rlbench_writer.write_rlbench,
    "robomimic": robomimic_writer.write,
}

OPEN = ("lerobot", "minari")  # formats that do not record what an action's numbers are


@pytest.fixture(scope="module", params=sorted(SAMPLES))
def tested(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Return a source with its sample."""
    folder = tmp_path_factory.mktemp(request.param) / "sample"
    return subject("source", request.param, data=SAMPLES[request.param](folder))


@pytest.mark.parametrize("check", checks("source").values(), ids=list(checks("source")))
def test_it_keeps(check, tested: Subject) -> None:
    try:
        check(tested)
    except NotApplicable as e:
        assert check.__name__ == "check_counts", e
        pytest.skip(str(e))


def test_every_source_has_a_sample() -> None:
    assert set(SAMPLES) == set(registry.BUILT_IN["source"])
    for name in registry.names("source"):
        assert (registry.get("source", name).__doc__ or "").startswith("A Source ")


def test_a_sample_has_episodes_and_keys_to_choose_from(tested: Subject) -> None:
    source = opened(tested)
    assert len(source) >= 2
    assert len(source.spec.observation) >= (1 if tested.name == "minari" else 2)


def test_actions_say_their_convention(tested: Subject) -> None:
    source = opened(tested)
    convention = source.spec.action.convention
    assert convention is not None or tested.name in OPEN
    gripper = convention.gripper if convention else ""
    if gripper in ("close_is_-1", "close_is_+1"):
        for index in range(len(source)):
            assert set(np.unique(source.episode(index).actions[:, -1])) <= {-1.0, 1.0}


def test_a_key_that_is_not_there_is_refused_in_the_words_of_an_import(tested: Subject) -> None:
    every = list(opened(tested).spec.observation)
    with pytest.raises(ConfigError, match="import.keys: no observation 'nothing'") as refused:
        opened(tested, keys=[every[0], "nothing"])
    listed = str(refused.value).rpartition(": ")[2]
    assert sorted(listed.split(", ")) == sorted(every)
    with pytest.raises(ConfigError, match="import.keys: none is given"):
        opened(tested, keys=[])


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


def test_a_pipe_in_place_of_a_file_is_not_waited_for(
    tested: Subject, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tested.data
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
            source = opened(tested, data=copy)
            for index in range(len(source)):
                source.episode(index)
        except LatentplanError:
            refused += 1
        file.unlink()
        file.write_bytes(content)
    assert refused
