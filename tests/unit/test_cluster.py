"""Collecting on Ray: a cluster of two nodes, each a few processes of this machine."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from toy import ToyEnv

from latentplan.data.store import ZarrStore
from latentplan.errors import LatentplanError, UnstablePhysics
from latentplan.exploration import cluster as ours
from latentplan.exploration.collect import Progress, collect
from latentplan.exploration.picks import RandomPick
from latentplan.exploration.recorder import CollectConfig, Recipe

pytestmark = pytest.mark.slow
MARK = f"LATENTPLAN_TEST={uuid4().hex}"  # in the environment of every process of our cluster


def recipe(**settings: Any) -> Recipe:
    return Recipe(
        ToyEnv,
        RandomPick,
        env_config=ToyEnv.Config(**settings),
        policy_config=RandomPick.Config(),
        config=CollectConfig(length=6),
        seed=0,
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # it would write into the user's folder
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setenv(*MARK.split("="))
        for name, value in ours.QUIET.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        made.add_node(num_cpus=2)
        yield made
        made.shutdown()


def collected(path: Path, made_by: Recipe, *, episodes: int, **how: Any) -> Progress:
    exists = path.exists()
    with ZarrStore.open(path, "a") if exists else ZarrStore.create(path, ToyEnv().data_spec) as s:
        return collect(s, made_by, episodes=episodes, **how)


def assert_same(path: Path, other: Path) -> None:
    with ZarrStore.open(path) as found, ZarrStore.open(other) as wanted:
        np.testing.assert_array_equal(found.ends, wanted.ends)
        rows = int(wanted.ends[-1])
        for name in ("observation/rgb", "observation/keypoints", "action", "reward"):
            np.testing.assert_array_equal(found.rows(name, 0, rows), wanted.rows(name, 0, rows))
        assert [found.episode(i).seed for i in range(len(found))] == [
            wanted.episode(i).seed for i in range(len(wanted))
        ]


def actors() -> list[int]:
    """Return the process numbers of the actors of our cluster."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                title = (process / "cmdline").read_bytes()
                ours = MARK.encode() in (process / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended, or is somebody else's
                continue
            if ours and title.startswith(b"ray::_Actor"):
                found.append(int(process.name))
    return found


def test_no_episode_is_lost_or_doubled_when_workers_and_a_node_die(
    cluster: Any, tmp_path: Path
) -> None:
    unstable = recipe(unstable=0.01)
    whole = collected(tmp_path / "whole.zarr", unstable, episodes=150, workers=0)
    node = cluster.add_node(num_cpus=1)
    seen: list[int] = []

    def disturb(progress: Progress) -> None:
        seen.append(progress.episodes)
        if progress.episodes in (30, 90):
            os.kill(actors()[0], signal.SIGKILL)
        if progress.episodes == 60:
            cluster.remove_node(node, allow_graceful=False)

    path = tmp_path / "ray.zarr"
    made = collected(
        path, unstable, episodes=150, workers=4, ray=cluster.address, report=disturb
    )
    assert made[:3] == whole[:3] and made.unstable > 0
    assert seen == list(range(1, 151))
    assert_same(path, tmp_path / "whole.zarr")
    collected(path, unstable, episodes=160, workers=2, ray=cluster.address)  # goes on
    collected(tmp_path / "whole.zarr", unstable, episodes=160, workers=0)
    assert_same(path, tmp_path / "whole.zarr")
    assert not actors()


def test_errors_of_a_worker_reach_the_caller(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(UnstablePhysics, match="^collect: episode 0 was unstable in all of 20"):
        collected(tmp_path / "a.zarr", recipe(unstable=1), episodes=3, workers=2,
                  ray=cluster.address)  # fmt: skip
    with pytest.raises(
        LatentplanError, match=r"worker process died.* 3 times at episode \d+; (\d+) of 500 epis"
    ):
        collected(tmp_path / "b.zarr", recipe(crash=0.01), episodes=500, workers=2,
                  ray=cluster.address)  # fmt: skip
    with ZarrStore.open(tmp_path / "b.zarr") as store:
        assert 0 < len(store) < 500


def test_a_cluster_without_a_free_cpu_is_an_error(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ours, "START", 2.0)
    ray.init(cluster.address, log_to_driver=False)
    taken = [ray.remote(num_cpus=1)(ours._Actor).remote(recipe()) for _ in range(3)]
    try:
        ray.get([actor.ping.remote() for actor in taken])
        with pytest.raises(LatentplanError, match="ray: the cluster gave no CPU.*it has 3"):
            collected(tmp_path / "a.zarr", recipe(), episodes=3, workers=2, ray="auto")
        assert ray.is_initialized()  # who connected, disconnects
    finally:
        ray.shutdown()


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1", ":", "127.0.0.1:x"])
def test_an_invalid_address_is_an_error(tmp_path: Path, address: str) -> None:
    with pytest.raises(LatentplanError, match="needs HOST:PORT"):
        collected(tmp_path / "a.zarr", recipe(), episodes=1, workers=1, ray=address)


def test_an_address_that_does_not_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "ANSWER", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:  # takes calls and says nothing
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(LatentplanError, match=f"collect.ray {address}: no Ray cluster answers"):
            collected(tmp_path / "a.zarr", recipe(), episodes=1, workers=1, ray=address)
    with pytest.raises(LatentplanError, match=f"collect.ray {address}: does not answer .*refused"):
        collected(tmp_path / "a.zarr", recipe(), episodes=1, workers=1, ray=address)
