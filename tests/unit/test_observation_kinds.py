"""Models of any observations and actions: trained, loaded and planned with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from point_world import STEP, observe, spec, stored
from scipy.stats import spearmanr

import latentplan
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, LatentplanError, ShapeError, StoreError
from latentplan.training import checkpoint
from latentplan.types import Context, Episode

CFM = [
    *("model.channels=[8,8]", "model.strides=[2,2]", "model.latent=8", "model.widths=[32,32]"),
    *("model.hidden=[32]", "model.ahead=1", "training.batch=32", "training.warmup=5"),
    *("training.learning_rate=5e-3", "training.held_out=0.2"),
]
CALIBRATED = [
    *(each.replace("model.", "model.base.") for each in CFM if each.startswith("model.")),
    *("model.dynamics.hidden=[64]", "model.inverse.hidden=[64]", "model.dynamics.members=1"),
    *(
        f"training.{stage}.{each}"
        for stage in ("base", "dynamics", "inverse")
        for each in ("batch=64", "learning_rate=5e-3", "warmup=5", "held_out=0.2")
    ),
]


def steps(count: int, *stages: str) -> list[str]:
    return [f"training.{stage}.steps={count}" for stage in stages] or [f"training.steps={count}"]


def trained(data: Path, run: Path, *overrides: str, steps_of: int = 60) -> Path:
    latentplan.train("cfm", data=data, run=run, overrides=[*CFM, *steps(steps_of), *overrides])
    return run


@pytest.mark.parametrize(
    "keys",
    [("depth",), ("depth_channel",), ("cloud",), ("joints",), ("front", "wrist", "joints", "open")],
    ids=" ".join,
)
def test_every_kind_of_observation_is_learned_and_planned_with(keys, tmp_path):
    data = stored(tmp_path / "a.zarr", keys)
    run = trained(data, tmp_path / "run")
    found = checkpoint.load(checkpoint.find(run))
    assert set(found.config.observe) == set(keys) and found.config.symmetric is False
    assert found.metrics["top1"] > 4 / found.metrics["top1_of"]  # 1 is chance
    policy = latentplan.load(run)
    policy.goal(observe(np.array([0.5, 0.5]), keys))
    action = policy.act(observe(np.zeros(2), keys))
    assert action.shape == (2,) and np.abs(action).max() <= 1


def reached(policy, keys: tuple[str, ...], *, goals: int = 4, unit: float = 1.0) -> float:
    """Return the mean distance that is left of 1 after four actions."""
    left = []
    for number in range(goals):
        angle = 2 * np.pi * (number + 0.3) / goals
        goal, now = 0.5 * np.array([np.cos(angle), np.sin(angle)]), np.zeros(2)
        start = np.linalg.norm(goal - now)
        policy.reset(seed=number)
        policy.goal(observe(goal, keys))
        for _ in range(4):
            now = now + STEP * policy.act(observe(now, keys)).astype(np.float64) / unit
        left.append(np.linalg.norm(goal - now) / start)
    return float(np.mean(left))


def test_calibrated_reaches_goals_of_vectors_alone_in_any_unit(tmp_path):
    keys, unit = ("joints",), 100.0
    data, run = stored(tmp_path / "a.zarr", keys, unit=unit), tmp_path / "run"
    some = [*CALIBRATED, *steps(80, "base", "dynamics", "inverse")]
    latentplan.train("calibrated", data=data, run=run, overrides=some)
    assert reached(latentplan.load(run), keys, unit=unit) < 0.3


@pytest.mark.parametrize("layers", [(), ("model.base.frames=2",)], ids=["default", "frames"])
def test_calibrated_takes_two_cameras_and_proprioception(layers, tmp_path):
    keys = ("front", "wrist", "joints", "open")
    data = stored(tmp_path / "a.zarr", keys, episodes=8)
    run = tmp_path / "run"
    few = [*CALIBRATED, *steps(6, "base", "dynamics", "inverse")]
    few = [each for each in few if layers or not each.startswith("model.base")]
    latentplan.train("calibrated", data=data, run=run, overrides=[*few, *layers])
    policy = latentplan.load(run)
    policy.goal(observe(np.array([0.5, 0.5]), keys))
    for _ in range(2):
        action = policy.act(observe(np.zeros(2), keys))
        assert np.isfinite(action).all() and np.abs(action).max() <= 1


def costs(run: Path, *, unit: float) -> np.ndarray:
    """Return the predicted costs of 200 plans, the same motions in every unit."""
    model = checkpoint.load(checkpoint.find(run)).model
    rng = np.random.default_rng(0)
    actions = torch.from_numpy(unit * rng.uniform(-1, 1, (1, 200, 2, 2))).float()

    def z(position):
        seen = observe(np.array(position), ("joints",))
        return model.encode({key: torch.from_numpy(x)[None, None] for key, x in seen.items()})

    with torch.no_grad():
        start = model.prepare(Context(z([0.0, 0.0]), actions[:, 0, :0]))
        away = model.rollout(start, actions)[:, :, -1] - z([0.4, -0.3])
    return away.square().sum(-1)[0].numpy()


def test_training_is_unchanged_by_the_unit_of_actions(tmp_path):
    found = []
    for unit in (1.0, 100.0):
        data = stored(tmp_path / f"{unit}.zarr", ("joints",), unit=unit)
        run = trained(data, tmp_path / f"run-{unit}")
        found.append(costs(run, unit=unit))
    assert spearmanr(*found).statistic > 0.98


def test_a_resumed_training_keeps_its_statistics(tmp_path):
    data = stored(tmp_path / "a.zarr", ("joints",))
    whole = trained(data, tmp_path / "whole", "training.save_every=1", steps_of=6)

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.done == 3:
            raise Killed

    options = {"data": data, "run": tmp_path / "cut"}
    options["overrides"] = [*CFM, *steps(6), "training.save_every=1"]
    with pytest.raises(Killed):
        latentplan.train("cfm", **options, on_progress=kill)
    latentplan.train("cfm", **options, resume=True)
    ends = [
        checkpoint.read(run / "last.safetensors", format=checkpoint.FORMAT)[0]
        for run in (whole, tmp_path / "cut")
    ]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    scaling = ends[0]["encoder.sensors.0.scaling.span"]
    assert scaling[2] == 0 and 0.3 < scaling[0] < 0.9


def test_constant_numbers_of_the_data_change_nothing(tmp_path):
    model = checkpoint.load(
        checkpoint.find(trained(stored(tmp_path / "a.zarr", ("joints",)), tmp_path / "run"))
    ).model
    seen = torch.randn(1, 5, 4)
    other = seen.clone()
    other[..., 2] = 1e6  # 0.1 in all the data
    with torch.no_grad():
        z = model.encode({"joints": seen})
        assert torch.equal(model.encode({"joints": other}), z)
        other[..., 3] += 1
        assert not torch.allclose(model.encode({"joints": other}), z)


def test_what_a_model_needs_and_does_not_get_is_named(tmp_path):
    keys = ("front", "joints")
    run = trained(stored(tmp_path / "a.zarr", keys), tmp_path / "run", steps_of=2)
    policy, seen = latentplan.load(run), observe(np.zeros(2), keys)
    bad = {
        "the observation has no 'joints', only front": {"front": seen["front"]},
        r"goal.*\['front'\]: found shape \(24, 24, 3\), need \(24, 32, 3\)": {
            **seen,
            "front": seen["front"][:, :24],
        },
        "has no 'front', only joints, wrist": {**observe(np.zeros(2), ("wrist", "joints"))},
        "NaN": {**seen, "joints": np.full(4, np.nan, np.float32)},
    }
    for message, goal in bad.items():
        with pytest.raises(ShapeError, match=message) as caught:
            policy.goal(goal)
        assert "\n" not in str(caught.value)


def test_a_symmetry_is_that_of_one_image_alone(tmp_path):
    data = stored(tmp_path / "a.zarr", ("front", "joints"))
    with pytest.raises(ConfigError, match="CFM.symmetric: found true for the observations front, "):
        trained(data, tmp_path / "run", "model.symmetric=true")
    assert not (tmp_path / "run").exists()


def test_data_that_cannot_be_trained_on_leave_nothing(tmp_path):
    data = stored(tmp_path / "a.zarr", ("joints",), episodes=6)
    zarr.open_array(data / "observation/joints")[13, 0] = np.nan
    few = stored(tmp_path / "few.zarr", ("joints",), length=3)
    cases = [
        (data, "joints of episode 1 has a number that is NaN", StoreError, ()),
        (few, "has 5 observations in a row", LatentplanError, ("model.frames=4",)),
    ]
    for path, message, error, overrides in cases:
        with pytest.raises(error, match=message) as caught:
            trained(path, tmp_path / "run", *overrides)
        assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_proposer_of_another_spec_is_named(tmp_path):
    keys = ("joints",)
    run = trained(stored(tmp_path / "a.zarr", keys), tmp_path / "run", steps_of=2)
    other = tmp_path / "other.zarr"
    with ZarrStore.create(other, spec(("wrist",))) as store:
        rng = np.random.default_rng(0)
        for _ in range(8):
            places = rng.uniform(-1, 1, (14, 2))
            seen = np.stack([observe(each, ("wrist",))["wrist"] for each in places])
            actions = rng.uniform(-1, 1, (13, 2)).astype(np.float32)
            store.append(Episode({"wrist": seen}, actions, np.zeros(13, np.float32)))
    few = [*CALIBRATED, *steps(2, "base", "dynamics", "inverse")]
    latentplan.train("calibrated", data=other, run=tmp_path / "inverse", overrides=few)
    policy = latentplan.load(run, overrides=[f"mpc.proposer.run={tmp_path / 'inverse'}"])
    with pytest.raises(ShapeError, match="goal.observation: the observation has no 'wrist'"):
        policy.goal(observe(np.zeros(2), keys))


@pytest.mark.slow
def test_calibrated_plans_on_the_tabletop_with_both_cameras_and_proprioception(tmp_path):
    data, run = tmp_path / "tabletop.zarr", tmp_path / "run"
    latentplan.collect(
        "tabletop", policy="expert", out=data, episodes=10, overrides=["collect.length=14"]
    )
    few = [each for each in CALIBRATED if not each.startswith("model.base")]
    few += steps(4, "base", "dynamics", "inverse")
    latentplan.train("calibrated", data=data, run=run, overrides=few)
    model = checkpoint.load(checkpoint.find(run)).model
    assert set(model.spec.observation) == {"rgb_static", "rgb_gripper", "robot_obs"}
    found = latentplan.evaluate(run, env="tabletop", episodes=1, overrides=["length=2"])
    assert len(found.trials) == 1
