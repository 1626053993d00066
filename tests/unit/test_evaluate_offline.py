"""Evaluation on recorded episodes, and goals taken from them."""

import json

import numpy as np
import pytest
import torch
from moving_square import stored
from torch import nn

import latentplan
from latentplan.api.evaluate_offline import evaluate_offline
from latentplan.api.goals import goal_of, of_place, read_by
from latentplan.api.train import train
from latentplan.data.store import ZarrStore
from latentplan.errors import CheckpointError, ConfigError, ShapeError, StoreError
from latentplan.evaluation import offline
from latentplan.objectives.goal import GoalDistance
from latentplan.types import ActionSpec, ArraySpec, Episode, Goal, Label, Spec

SPEC = Spec({"at": ArraySpec((2,))}, ActionSpec((-1.0, -1.0), (1.0, 1.0)))


class Point(nn.Module):
    """A point whose actions are displacements; its predictions move by `gain` of them."""

    spec, latent_dim, context = SPEC, 2, 2

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def encode(self, observations):
        return observations["at"]

    def prepare(self, context):
        assert context.latents.shape[1] == 2 and context.actions.shape[1] == 1
        return context.latents[:, -1]

    def rollout(self, prepared, actions):
        return prepared[:, None, None] + self.gain * actions.cumsum(2)


def walk(length: int, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    actions = rng.uniform(0.2, 1, (length, 2)).astype(np.float32)
    at = np.concatenate([np.zeros((1, 2), np.float32), actions.cumsum(0)])
    return Episode({"at": at}, actions, np.zeros(length, np.float32))


@pytest.mark.parametrize(("gain", "error"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_predictions_are_compared_with_the_true_latents(gain, error):
    model, episode = Point(gain), walk(8)
    z = offline.latents(model, episode)
    for ahead in (1, 5):
        predicted, true, start = offline.predictions(model, z, episode.actions, ahead)
        assert len(predicted) == 4  # from the first step on, before which the first is repeated
        found = (predicted - true).norm(dim=-1).sum() / (start - true).norm(dim=-1).sum()
        assert float(found) == pytest.approx(error, abs=1e-6)
    assert len(offline.predictions(model, z, episode.actions, 9)[0]) == 0  # too short


def test_costs_agree_with_the_steps_to_go_where_the_way_is_straight():
    model, episode = Point(1.0), walk(8)
    z = offline.latents(model, episode)
    cost = offline.costs(model, GoalDistance(), Goal({"at": episode.observations["at"][-1]}), z)
    assert offline.agreement(cost[:-1]) == 1.0
    assert offline.agreement(cost[:-1][::-1]) == -1.0
    assert offline.agreement(offline.pixel_costs(model, episode)) == 1.0
    assert np.isnan(offline.agreement(np.ones(5)))


def test_a_prediction_is_retrieved_if_its_own_latent_is_the_nearest():
    true = torch.eye(3)
    assert offline.nearest(true, true).all()
    assert not offline.nearest(true.roll(1, 0), true).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("offline")
    few = ["steps=6", "window=4", "batch=4", "latent=8", "hidden=[16]"]
    few += ["channels=[4,8]", "strides=[2,2]"]
    train("cfm", data=stored(made / "data.zarr"), run=made / "cfm", overrides=few)
    return made


def test_a_run_is_compared_with_recorded_episodes(folder):
    asked = {"data": folder / "data.zarr", "split": "all", "planner": "shooting"}
    few = ["candidates=8"]
    found = evaluate_offline(folder / "cfm", out=folder / "out", overrides=few, **asked)
    assert set(found.skipped) == {"prediction error, 25 ahead", "retrieval, 25 ahead"}
    assert list(found.figures) == [
        "action error", "prediction error, 1 ahead", "retrieval, 1 ahead",
        "prediction error, 5 ahead", "retrieval, 5 ahead", "rank of the recorded action",
        "cost against steps to go",
    ]  # fmt: skip
    for figure in found.figures.values():
        low, high = figure["ci95"]
        assert low <= figure["value"] <= high and figure["episodes"] >= 5
    assert found.figures["prediction error, 1 ahead"]["control"] == 1.0
    assert 1 < found.figures["action error"]["control"] < 2  # of actions that are independent
    written = json.loads(found.files["results.json"].read_text())
    assert written["figures"].keys() == found.figures.keys()
    assert "| rank of the recorded action |" in found.files["results.md"].read_text()
    again = evaluate_offline(folder / "cfm", out=folder / "again", overrides=few, **asked)
    assert again.figures == found.figures


def test_data_that_do_not_fit_are_refused_before_anything_is_written(folder, tmp_path):
    run, data, out = folder / "cfm", folder / "data.zarr", tmp_path / "out"
    with pytest.raises(ConfigError, match="split: found 'train', need test or all"):
        evaluate_offline(run, data=data, out=out, split="train")
    other = tmp_path / "other.zarr"
    with ZarrStore.create(other, SPEC) as store:
        for _ in range(2):
            store.append(walk(3))
    with pytest.raises(StoreError, match="found 1 held-out episodes in .*, need at least 2"):
        evaluate_offline(run, data=other, out=out)
    with pytest.raises(ShapeError, match="has no 'rgb', only at"):
        evaluate_offline(run, data=other, out=out, split="all")
    wide = Spec(SPEC.observation, ActionSpec((-2.0,), (2.0,)))
    with ZarrStore.create(tmp_path / "wide.zarr", wide) as store:
        pass
    with pytest.raises(CheckpointError, match=r"actions from \(-2.0,\) to \(2.0,\)"):
        evaluate_offline(run, data=tmp_path / "wide.zarr", out=out, split="all")
    assert not out.exists()


@pytest.fixture
def labelled(tmp_path):
    spec = Spec(
        {**SPEC.observation, "secret": ArraySpec((1,))}, SPEC.action, privileged=("secret",)
    )
    labels = (Label("push it", "push", 0, 2), Label("lift it", stop=-1, start=2))
    episode = walk(4)
    seen = {**episode.observations, "secret": np.zeros((5, 1), np.float32)}
    with ZarrStore.create(tmp_path / "walks.zarr", spec) as store:
        store.append(Episode(seen, episode.actions, episode.rewards, labels=labels))
    return tmp_path / "walks.zarr", seen["at"]


def test_a_goal_is_a_public_observation_of_an_episode_with_its_task(labelled):
    path, at = labelled
    last = latentplan.goal_of(path, episode=0)
    assert set(last.observation) == {"at"} and last.text == "lift it"
    np.testing.assert_array_equal(last.observation["at"], at[-1])
    first = of_place(f"{path}:-1:1")
    np.testing.assert_array_equal(first.observation["at"], at[1])
    assert first.text == "push" and set(read_by(SPEC, first)) == {"at"}
    assert of_place("goal.png") is None


@pytest.mark.parametrize(
    ("place", "error"),
    [
        (":1", "episode: found 1, .* has the episodes 0 to 0"),
        (":0:5", "step: found 5, .* has the steps 0 to 4"),
        ("", "need DATA.zarr:EPISODE"),
    ],
)
def test_a_place_that_is_not_there_is_one_line(labelled, place, error):
    path, _ = labelled
    with pytest.raises((StoreError, ConfigError), match=error):
        of_place(f"{path}{place}")


def test_a_goal_that_the_model_cannot_read_is_refused(labelled):
    path, _ = labelled
    other = Spec({"rgb": ArraySpec((8, 8, 3), "uint8")}, SPEC.action)
    with pytest.raises(ShapeError, match=r"found at \(2,\), the model needs rgb \(8, 8, 3\)"):
        read_by(other, goal_of(path, episode=0))
