"""What is drawn and measured of a VideoWorld: the same as in use, and right where it is known."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import latentplan
from latentplan import config
from latentplan.api.show import describe
from latentplan.data.store import ZarrStore
from latentplan.errors import StoreError, UnstablePhysics
from latentplan.models.videoworld import figures
from latentplan.models.videoworld.ldm import LDM
from latentplan.models.videoworld.video_transformer import VideoTransformer
from latentplan.models.videoworld.videoworld import VideoWorld
from latentplan.sim.tabletop.env import Tabletop
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, ArraySpec, Convention, Episode, Label, Part, Spec

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import videoworld_ablations as ablations  # noqa: E402
import videoworld_agent  # noqa: E402
import videoworld_page as page  # noqa: E402
import videoworld_probe as probe  # noqa: E402
import videoworld_rollouts as rollouts  # noqa: E402

KEYS = ("rgb_a", "rgb_b")
SPEC = Spec(
    {key: ArraySpec((32, 32, 3), "uint8") for key in KEYS},
    ActionSpec((-1.0,) * 7, (1.0,) * 7, convention=Convention("ee_delta", gripper="close_is_-1")),
    dt=0.1,
)
TASKS = ("close_drawer", "open_drawer")
CONFIG = VideoWorld.Config(
    tokenizer=Part("tokenizer", "vqvae", VQVAE.Config(channels=(8, 16), levels=(4, 3, 3))),
    ldm=LDM.Config(channels=(16,), heads=2, layers=1, horizon=3, decoded=2, levels=(3, 3)),
    transformer=VideoTransformer.Config(context=3, horizon=3, width=32, layers=2, heads=2),
    inverse=replace(VideoWorld.Config().inverse, chunk=3, width=16),
)
LENGTH, MOVED = 12, 5  # actions of an episode; observation from which on its picture is another


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a run of random weights, and the data in its header."""
    torch.manual_seed(0)
    model = VideoWorld(SPEC, CONFIG.fitted(SPEC, tasks=TASKS)).eval()
    for weight in model.parameters():  # nothing is almost zero, so that all that is seen matters
        weight.data += 0.2 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp("run")
    metrics = {"loss": 0.0}
    checkpoint.save(
        folder / "best.safetensors", model, name="videoworld", step=1, metrics=metrics
    )
    rng = np.random.default_rng(0)
    with ZarrStore.create(folder / "data.zarr", SPEC) as store:
        for number in range(21):
            pictures = rng.integers(0, 256, (2, 2, 32, 32, 3), np.uint8)  # camera, before or after
            later = (np.arange(LENGTH + 1) >= MOVED).astype(int)
            task = TASKS[number % 2]
            store.append(
                Episode(
                    observations={key: pictures[v][later] for v, key in enumerate(KEYS)},
                    actions=rng.uniform(-1, 1, (LENGTH, 7)).astype(np.float32),
                    rewards=np.zeros(LENGTH, np.float32),
                    labels=(Label(task.replace("_", " the "), task),),
                )
            )
    (folder / "config.yaml").write_text(f"data: {{path: {folder / 'data.zarr'}}}\n")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return videoworld_agent.load(str(folder))


def test_a_run_is_shown_in_images(folder, tmp_path):
    told = "\n".join(describe(folder, out=tmp_path / "curves.png"))
    assert "code 3: " in told and " of 9 in use, perplexity " in told
    sizes = {}
    for name in ("reconstructions", "futures", "codes", "usage"):
        picture = np.asarray(Image.open(tmp_path / f"{name}.png"))
        assert picture[..., :3].std() > 10
        sizes[name] = picture.shape
    # One clip a task has four rows, one code four: the picture and what is new, for two cameras.
    assert sizes["futures"][0] < sizes["codes"][0]


def test_missing_data_are_named(folder, tmp_path):
    (tmp_path / "best.safetensors").write_bytes((folder / "best.safetensors").read_bytes())
    assert any("name data" in line for line in describe(tmp_path))
    (tmp_path / "config.yaml").write_text("data: {path: gone.zarr}\n")
    assert any("gone.zarr do not exist any more" in line for line in describe(tmp_path))
    other = replace(SPEC, observation={"rgb": SPEC.observation["rgb_a"]})
    with ZarrStore.create(tmp_path / "other.zarr", other):
        pass
    with pytest.raises(StoreError, match="has no 'rgb_a', which the model needs"):
        list(describe(tmp_path, data=tmp_path / "other.zarr"))


def test_the_shown_codes_are_those_of_the_largest_changes(folder, model):
    with ZarrStore.open(folder / "data.zarr") as store:
        episodes = figures.held_out(store)
    seen = figures.encode(model, episodes)
    whole = {key: torch.from_numpy(episodes[0].observations[key])[None] for key in KEYS}
    at_start = model.ldm.encode({key: x[:, :4] for key, x in whole.items()})
    assert seen.codes[0].tolist() == at_start[0].tolist()
    assert np.isnan(seen.actions[LENGTH]).all() and not np.isnan(seen.actions[:LENGTH]).any()
    for clip in figures.clips(model, episodes):
        for key in KEYS:
            assert (clip.after[key][-1] != clip.before[key][-1]).mean() > 0.9
    share, used, perplexity = figures.code_usage(np.array([[0, 3], [3, 0]]), 8)
    assert (share[3], used) == (0.5, 2) and perplexity == pytest.approx(2)


def test_many_episodes_at_once_are_acted_in_as_one_alone_by_the_planner(folder, model):
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (2, 6, 2, 32, 32, 3), np.uint8)  # episode, step, camera
    seen[1, 1] = seen[1, 0]  # nothing moves at first: the two remember differently many frames
    agent = videoworld_agent.Agent(model)
    agent.begin([], "open_drawer", seeds=(0, 1))
    made = [[], []]
    for step in range(6):
        lanes = [0, 1] if step < 4 else [1]  # the first ends earlier
        asked = [dict(zip(KEYS, seen[lane, step], strict=True)) for lane in lanes]
        for lane, action in zip(lanes, agent.act(lanes, asked), strict=True):
            made[lane].append(action)
    for lane, steps in enumerate((4, 6)):
        planner = latentplan.load(folder, policy="generative")
        planner.goal(dict(zip(KEYS, seen[lane, 0], strict=True)), text="open_drawer")
        alone = [
            planner.act(dict(zip(KEYS, seen[lane, step], strict=True))) for step in range(steps)
        ]
        np.testing.assert_allclose(made[lane], alone, atol=1e-4)


def test_random_codes_change_actions(model):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    seen = [dict(zip(KEYS, pictures, strict=True))]
    acted = {}
    for codes in ((), (0, 1, 2)):
        agent = videoworld_agent.Agent(model, intervene=codes)
        agent.begin([], "open_drawer", seeds=(3,))
        acted[codes] = agent.act([0], seen)
    assert np.abs(acted[()] - acted[(0, 1, 2)]).max() > 1e-3


def test_only_the_expert_succeeds_in_the_attempts():
    asked = {"episodes": 3, "length": 20}
    done, _ = rollouts.attempts(rollouts.Oracle(), rollouts.CATEGORIES["turn on/off"], **asked)
    assert [a.task for a in done] == ["turn_on_light", "turn_on_light", "turn_off_light"]
    assert all(a.success and 3 < a.actions <= 20 for a in done)
    idle, _ = rollouts.attempts(rollouts.Noop(), ["turn_on_light"], episodes=1, length=5)
    assert not idle[0].success and idle[0].actions == 5


def test_an_attempt_whose_simulation_diverges_fails_and_the_others_go_on(monkeypatch):
    step, steps = Tabletop.step, {}

    def unstable(env, action):
        steps[env] = steps.get(env, 0) + 1
        if env is next(iter(steps)) and steps[env] == 3:
            raise UnstablePhysics("tabletop: the simulation diverged; reset and drop the episode")
        return step(env, action)

    monkeypatch.setattr(Tabletop, "step", unstable)
    tasks = ["turn_on_light"]
    made, _ = rollouts.attempts(rollouts.Oracle(), tasks, episodes=2, length=20)
    assert [attempt.success for attempt in made] == [False, True]
    assert list(steps.values()) == [3, made[1].actions]


def test_a_probe_finds_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(600, 8)), np.repeat(np.arange(60), 10)
    y = x @ rng.normal(size=(8, 3)) + 0.1
    for inputs, low, high in ((x, 0.99, 1.01), (rng.permutation(x), -0.2, 0.1)):
        sides = {"fit": inputs[:400], "test": inputs[400:]}
        error, spread = probe.fit(sides, {"fit": y[:400], "test": y[400:]}, group[:400])
        found = probe.scored(error, spread, group[400:])
        assert low < found["r2"] < high
        assert found["interval"][0] <= found["r2"] <= found["interval"][1]


def test_ablations_are_settings_of_the_model_and_tables_have_marks():
    variants = ablations.variants(["horizon", "book"], [0, 1, 8], [9, 1000])
    schema = {"model": VideoWorld.Config, "training": VideoWorld.Training}
    books = []
    for settings in variants.values():
        found = config.load(schema, preset={}, overrides=settings)["model"]
        books.append((found.transformer.horizon, found.ldm.horizon, np.prod(found.ldm.levels)))
    assert books == [(0, 8, 64), (1, 8, 64), (8, 8, 64), (4, 4, 9), (4, 4, 1000)]
    (name,) = told = ablations.variants(["labels"], [4], [])
    assert name == "H=4, actions of a tenth"
    assert config.load(schema, preset={}, overrides=told[name])["model"].inverse.labelled == 0.1
    text = page.PAGE.read_text(encoding="utf-8")
    row = {"categories": {"push": {"success": 0.5, "interval": [0.366, 0.634]}}}
    made = page.tables({"success": {"random": row}, "intervene": {"run": {"none": row}}})
    assert "| random | 50 % (37 to 63) | – | – | – |" in made["success"]
    for name in (*made, "ablations", "probe", "codes", "proposals", "timing"):
        assert f"<!-- table: {name} -->" in text
