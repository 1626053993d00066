from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr
from toy import ToyEnv

from latentplan import registry, types
from latentplan.api.collect import collect as run
from latentplan.cli import main
from latentplan.data.store import ZarrStore
from latentplan.errors import (
    ConfigError,
    Interrupted,
    LatentplanError,
    StoreError,
    UnstablePhysics,
)
from latentplan.exploration.collect import Progress, collect
from latentplan.exploration.oracle import Oracle
from latentplan.exploration.picks import RandomPick
from latentplan.exploration.recorder import CollectConfig, Recipe, Recorder
from latentplan.types import Label, Step


def recipe(env: type = ToyEnv, *, seed: int = 0, length: int = 6, **settings: Any) -> Recipe:
    return Recipe(
        env,
        RandomPick,
        env_config=ToyEnv.Config(**settings),
        policy_config=RandomPick.Config(),
        config=CollectConfig(length=length),
        seed=seed,
    )


def collected(path: Path, made_by: Recipe, *, episodes: int, workers: int) -> Progress:
    exists = path.exists()
    with ZarrStore.open(path, "a") if exists else ZarrStore.create(path, ToyEnv().data_spec) as s:
        return collect(s, made_by, episodes=episodes, workers=workers)


def arrays(path: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(path, mode="r")
    names = ["observation/rgb", "observation/keypoints", "action", "reward"]
    names += [f"episode/{name}" for name in ("end", "seed", "terminated", "truncated")]
    return {name: np.asarray(group[name][:]) for name in names}


def assert_equal_arrays(path: Path, other: Path) -> None:
    wanted = arrays(other)
    for name, found in arrays(path).items():
        np.testing.assert_array_equal(found, wanted[name], strict=True, err_msg=name)


def test_the_data_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    unstable = recipe(unstable=0.03)
    one = collected(tmp_path / "0.zarr", unstable, episodes=24, workers=0)
    assert one.episodes == 24 and one.transitions == 24 * 6
    assert one.unstable > 0  # dropped, and made again
    for workers in (1, 3):
        path = tmp_path / f"{workers}.zarr"
        assert collected(path, unstable, episodes=24, workers=workers)[:3] == one[:3]
        assert_equal_arrays(path, tmp_path / "0.zarr")
    with ZarrStore.open(tmp_path / "0.zarr") as store:
        assert len(set(arrays(store.path)["episode/seed"].tolist())) == 24


def test_an_episode_depends_on_the_seed_and_replays(tmp_path: Path) -> None:
    collected(tmp_path / "a.zarr", recipe(seed=1), episodes=3, workers=0)
    collected(tmp_path / "b.zarr", recipe(seed=2), episodes=3, workers=0)
    with ZarrStore.open(tmp_path / "a.zarr") as a, ZarrStore.open(tmp_path / "b.zarr") as b:
        episode = a.episode(2)
        assert not np.array_equal(episode.actions, b.episode(2).actions)
        env = ToyEnv()
        seen, _ = env.reset(seed=episode.seed)
        for t, action in enumerate(episode.actions):
            np.testing.assert_array_equal(seen["rgb"], episode.observations["rgb"][t])
            seen = env.step(action).observation
        np.testing.assert_array_equal(seen["keypoints"], episode.observations["keypoints"][-1])


def test_collection_continues_at_the_end_of_the_store(tmp_path: Path) -> None:
    collected(tmp_path / "whole.zarr", recipe(), episodes=9, workers=0)
    for episodes in (2, 2, 7, 9, 5):  # 5: there are more already
        collected(tmp_path / "parts.zarr", recipe(), episodes=episodes, workers=0)
    assert_equal_arrays(tmp_path / "parts.zarr", tmp_path / "whole.zarr")


class Tells(ToyEnv):
    def reset(self, **asked: Any) -> Any:
        seen, info = super().reset(**asked)
        tells = [{}, {"task": "push"}, {"text": "push it"}, {"text": "push it", "task": "push"}]
        return seen, info | {"mass": 2.0, "text": 3} | tells[self._rng.integers(4)]


def test_text_and_task_of_a_reset_become_the_label(tmp_path: Path) -> None:
    collected(tmp_path / "a.zarr", recipe(Tells), episodes=20, workers=0)
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        found = [store.episode(number) for number in range(20)]
    wanted = {(), (Label("", "push"),), (Label("push it"),), (Label("push it", "push"),)}
    assert {e.labels for e in found} == wanted
    assert {e.info["mass"] for e in found} == {2.0}


class Ends(ToyEnv):
    def step(self, action: np.ndarray) -> Step:
        return super().step(action)._replace(terminated=action[0] > 0, reward=float(action[0]))


def test_an_episode_ends_with_its_env(tmp_path: Path) -> None:
    collected(tmp_path / "a.zarr", recipe(Ends, length=5), episodes=20, workers=0)
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        episodes = [store.episode(number) for number in range(20)]
    assert len({len(e) for e in episodes}) > 1
    for e in episodes:
        assert (e.rewards == e.actions[:, 0]).all()
        assert (e.actions[:-1, 0] <= 0).all()
        assert e.terminated == (e.actions[-1, 0] > 0) and (e.terminated or len(e) == 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_physics_that_always_diverges_is_an_error(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UnstablePhysics, match="episode 0 was unstable in all of 20 attempts"):
        collected(tmp_path / "a.zarr", recipe(unstable=1), episodes=3, workers=workers)
    assert len(ZarrStore.open(tmp_path / "a.zarr")) == 0


def test_a_dead_worker_is_an_error_and_stored_episodes_are_kept(tmp_path: Path) -> None:
    with pytest.raises(LatentplanError, match=r"worker process died.* (\d+) of 500 episodes are"):
        collected(tmp_path / "a.zarr", recipe(crash=0.004), episodes=500, workers=2)
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        kept = len(store)
        assert 0 < kept < 500
    collected(tmp_path / "a.zarr", recipe(), episodes=kept + 1, workers=0)


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    collected(tmp_path / "whole.zarr", recipe(), episodes=120, workers=0)
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.episodes in (10, 60):
            worker = active_children()[0]
            killed.append(worker.pid or 0)
            worker.kill()

    with ZarrStore.create(tmp_path / "a.zarr", ToyEnv().data_spec) as store:
        made = collect(store, recipe(), episodes=120, workers=2, report=kill)
    assert made.episodes == 120 and len(set(killed)) == 2
    assert_equal_arrays(tmp_path / "a.zarr", tmp_path / "whole.zarr")


def test_errors_of_an_env_reach_the_user(tmp_path: Path) -> None:
    broken = recipe()
    with pytest.raises(AttributeError, match="discs"):  # a bug, not a user's mistake
        collected(
            tmp_path / "a.zarr",
            Recipe(
                ToyEnv,
                RandomPick,
                env_config="not a config",
                policy_config=None,
                config=broken.config,
                seed=0,
            ),
            episodes=3,
            workers=2,
        )


# --- the function and the command ---------------------------------------------------------------


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILT_IN["env"], "toy", "toy:ToyEnv")


def test_the_command_collects_and_prints(
    toy: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.zarr"
    argv = ["collect", "toy", "--out", str(out), "--workers", "0", "length=3", "env.discs=2"]
    assert main([*argv, "--episodes", "4"]) == 0
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "4 episodes, 12 transitions" in told and "0 unstable" in told and "bytes an im" in told
    assert main([*argv, "--episodes", "6"]) == 0
    assert "6 episodes, 18 transitions; new 2 episodes, 6 trans" in capsys.readouterr().out
    with ZarrStore.open(out) as store:
        assert store.settings["env"] == {
            "name": "toy",
            "discs": 2,
            "radius": 0.03,
            "reach": 0.1,
            "unstable": 0.0,
            "crash": 0.0,
        }
        assert store.settings["collect"]["length"] == 3 and store.settings["seed"] == 0


@pytest.mark.parametrize(
    ("policy", "overrides"),
    [
        ("box", ["policy.colour=1"]),
        ("oracle", []),
        ("noisy_oracle", {"policy": {"noise": 0.1}}),
        ("mixture", {"policy.share": 0.7, "policy.expert.noise": 0.1}),
    ],
)
def test_any_policy_collects(
    toy: None, tmp_path: Path, policy: str, overrides: list[str] | dict[str, Any]
) -> None:
    counts = (0, 2) if policy == "mixture" else (0,)  # it consists of the others
    for workers in counts:
        out = tmp_path / f"{workers}.zarr"
        run("toy", episodes=4, out=out, workers=workers, policy=policy, overrides=overrides)
        assert_equal_arrays(out, tmp_path / "0.zarr")
    with ZarrStore.open(tmp_path / "0.zarr") as store:
        assert store.settings["policy"]["name"] == policy
        assert len(np.unique(arrays(store.path)["action"], axis=0)) > 10


def test_a_store_may_be_a_url(toy: None) -> None:
    url = "memory://test_collect/a.zarr"
    run("toy", episodes=3, out=url, workers=0)
    found = run("toy", episodes=5, out=url, workers=0)
    assert (found.store, found.episodes, found.transitions) == (url, 5, 100)
    assert (found.new_episodes, found.new_transitions) == (2, 40)
    with ZarrStore.open(url) as store:
        assert len(store) == 5
    fsspec.filesystem("memory").rm("/test_collect", recursive=True)


def test_unstable_tries_and_numbers_of_the_env_are_stored(tmp_path: Path) -> None:
    made_by = recipe(unstable=0.05)
    progress = collected(tmp_path / "a.zarr", made_by, episodes=30, workers=0)
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        assert store.info()["unstable_tries"].sum() == progress.unstable > 0

    class Says(ToyEnv):
        def reset(self, **how: Any) -> Any:
            return super().reset(**how)[0], {"mass": np.float32(0.5), "hot": True, "goal": {}}

    recorded = Recorder(recipe(Says)).record(0)
    assert recorded.episode.info == {"mass": 0.5, "hot": 1.0, "unstable_tries": 0.0}
    assert 0 < recorded.env_seconds < 10


def test_a_goal_that_a_policy_chooses_is_what_rewards_are_for(tmp_path: Path) -> None:
    class Rewards(ToyEnv):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            self.target = (options or {}).get("goal")
            return super().reset(seed=seed)

        def step(self, action: np.ndarray) -> Step:
            step = super().step(action)
            return step._replace(reward=-self.distance(step.observation, self.target))

    expert = replace(recipe(Rewards, length=20), policy=Oracle, policy_config=None)
    rewards = Recorder(expert).record(0).episode.rewards
    assert rewards[0] < -0.03 and rewards[-1] > -0.01


def test_settings_are_not_mixed(toy: None, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    run("toy", episodes=1, out=out, workers=0)
    for change, message in (
        ({"overrides": ["env.radius=0.05"]}, "env.radius: the store has 0.03, given is 0.05"),
        ({"overrides": ["length=3"]}, "collect.length: the store has 20, given is 3"),
        ({"seed": 1}, "seed: the store has 0, given is 1"),
    ):
        with pytest.raises(StoreError, match=f"{message}; .* another store"):
            run("toy", **{"episodes": 2, "out": out, "workers": 0, **change})
    with ZarrStore.open(out) as store:
        assert len(store) == 1


def test_numbers_are_checked(toy: None, tmp_path: Path) -> None:
    for wrong in ({"episodes": 0}, {"workers": -1}, {"seed": -1}):
        with pytest.raises(ConfigError, match=rf"^collect\.{next(iter(wrong))}: "):
            run("toy", **{"episodes": 1, "out": tmp_path / "a.zarr", "workers": 0, **wrong})
    assert not (tmp_path / "a.zarr").exists()


SCRIPT = """
import sys
from latentplan import registry
from latentplan.cli import main
if __name__ == "__main__":
    registry.BUILT_IN["env"]["toy"] = "toy:ToyEnv"
    argv = ["collect", "toy", "--episodes", "400", "--out", {out!r}, "--workers", "2", "length=7"]
    sys.exit(main(argv))
"""


def started(folder: Path, out: Path) -> subprocess.Popen[str]:
    script = folder / "collect.py"
    script.write_text(SCRIPT.format(out=str(out)))
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests")])
    return subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(count: int, out: Path) -> None:
    """Return when `count` episodes were seen in the store."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pending = [int(f.stem) + 1 for f in (out / ".pending").glob("*.npz")]
        if max(pending, default=0) >= count:
            return
        time.sleep(0.001)
    raise AssertionError(f"{count} episodes did not come")


def assert_session_ends(session: int) -> None:
    """Wait until no process of a session is left: workers do not outlive their parent."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("worker processes are left")


@pytest.mark.slow
def test_kill_9_at_any_moment_then_resume_gives_the_same_data(toy: None, tmp_path: Path) -> None:
    run("toy", episodes=400, out=tmp_path / "whole.zarr", workers=0, overrides=["length=7"])
    out = tmp_path / "killed.zarr"
    rng = np.random.default_rng()
    done = 0
    for _ in range(3):
        process = started(tmp_path, out)
        wait_for(done + int(rng.integers(1, 40)), out)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert_session_ends(process.pid)
        with ZarrStore.open(out) as store:
            assert len(store) > done
            done = len(store)
    assert done < 400
    process = started(tmp_path, out)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"new {400 - done} episodes" in told
    assert_equal_arrays(out, tmp_path / "whole.zarr")


def test_ctrl_c_keeps_what_was_done(toy: None, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    process = started(tmp_path, out)
    wait_for(5, out)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and workers
    told, errors = process.communicate(timeout=30)
    assert_session_ends(process.pid)
    assert process.returncode != 0 and "Process" not in errors  # workers print no tracebacks
    with ZarrStore.open(out) as store:
        assert 5 <= len(store) < 400
        assert f"{len(store)} episodes" in told
    assert not list((out / ".pending").iterdir())


# --- classes and objects, as in a notebook ------------------------------------------------------


def test_a_class_and_an_object_are_collected_without_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mine(ToyEnv):
        pass

    seen: list[types.Progress] = []
    found = run(
        Mine,
        out=tmp_path / "a.zarr",
        episodes=2,
        policy=RandomPick,
        overrides={"collect": {"length": 3}, "env.discs": 2},
        on_progress=seen.append,
    )
    assert (found.episodes, found.new_transitions) == (2, 6)
    assert [(p.task.split()[0], p.done, p.total) for p in seen] == [
        ("collect", 0, 2), ("collect", 1, 2), ("collect", 2, 2),
    ]  # fmt: skip
    with found.open() as store:
        made = store.settings["env"]
    assert made["name"].endswith("Mine") and made["discs"] == 2
    env = ToyEnv(ToyEnv.Config(discs=2))
    again = run(env, out=tmp_path / "b.zarr", episodes=2, overrides=["length=3"])
    assert_equal_arrays(Path(again.store), tmp_path / "a.zarr")
    assert capsys.readouterr() == ("", "")


def test_a_class_that_workers_cannot_import_is_an_error(tmp_path: Path) -> None:
    class Mine(ToyEnv):
        pass

    with pytest.raises(ConfigError, match=r"collect.workers: env .*Mine cannot be imported by 2"):
        run(Mine, out=tmp_path / "a.zarr", episodes=1, workers=2)
    with pytest.raises(ConfigError, match="cannot be imported by the Ray cluster"):
        run(Mine, out=tmp_path / "a.zarr", episodes=1, ray="local")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_a_call_keeps_and_returns_what_was_done(tmp_path: Path) -> None:
    def stop(progress: types.Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        run(ToyEnv, out=tmp_path / "a.zarr", episodes=9, workers=0, on_progress=stop)
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.result.episodes == caught.value.result.new_episodes == 3
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        assert len(store) == 3
