"""Data of a trained run's own planner, and rounds of collecting and training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import latentplan
from latentplan.data.store import ZarrStore
from latentplan.errors import CheckpointError, ConfigError, StoreError, UnknownName

SMALL = ["model.channels=[8,16]", "model.strides=[2,2]", "model.hidden=[16]", "model.latent=8"]
SHORT = ["collect.length=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = folder / "data.zarr"
    latentplan.collect("rope", out=data, episodes=6, workers=0, overrides=SHORT)
    steps = ["training.steps=2", "training.batch=4", "training.window=3"]
    latentplan.train("cfm", data=data, run=folder / "run", overrides=[*SMALL, *steps])
    return folder / "run"


def test_rounds_add_episodes_of_the_planner_and_train_on_all(trained: Path, tmp_path: Path) -> None:
    quick = ["policy.planner=shooting", "training.steps=3"]
    options = {"out": tmp_path, "episodes": 2, "workers": 0}
    first = latentplan.improve(trained, rounds=1, overrides=quick, **options)
    assert [each.steps for each in first.rounds] == [3]
    again = latentplan.improve(trained, rounds=2, overrides=quick, **options)
    assert [each.steps for each in again.rounds] == [0, 3]  # the first is done
    assert again.run == tmp_path / "2" / "run"
    stores = [ZarrStore.open(tmp_path / name) for name in ("1/planned.zarr", "2/data.zarr")]
    assert [len(store) for store in stores] == [2, 10]
    planned, joined = stores
    np.testing.assert_array_equal(planned.episode(1).actions, joined.episode(7).actions)
    assert planned.settings["policy"]["run"] == str(trained)
    assert planned.settings["collect"]["length"] == 3  # as the data of the run
    assert latentplan.load(again.run).model.config.latent == 8


def test_a_run_as_policy_acts_near_its_plans_towards_drawn_goals(
    trained: Path, tmp_path: Path
) -> None:
    made = {}
    for name, noise in (("exact", 0.0), ("again", 0.0), ("noisy", 0.1)):
        overrides = [*SHORT, f"policy.noise={noise}", f"policy.aim={noise}"]
        found = latentplan.collect(
            "rope", policy=trained, out=tmp_path / name, episodes=2, workers=0, overrides=overrides
        )
        made[name] = found.open().episode(1).actions
    np.testing.assert_array_equal(made["exact"], made["again"])
    assert 0 < np.abs(made["noisy"] - made["exact"])[0].max() <= 1
    assert np.abs(made["noisy"]).max() <= 1


def test_another_run_does_not_continue_the_data_of_one(trained: Path, tmp_path: Path) -> None:
    options = {"out": tmp_path / "a.zarr", "workers": 0, "overrides": SHORT}
    latentplan.collect("rope", policy=str(trained), episodes=1, **options)
    with pytest.raises(StoreError, match="settings"):
        latentplan.collect("rope", policy="rope-cfm", episodes=2, **options)
    with pytest.raises(UnknownName, match="policy.*'no-such-run'.*random"):
        latentplan.collect("rope", policy="no-such-run", episodes=2, **options)
    with pytest.raises(ConfigError, match=r"OnPolicy\.run: 'rope-cfm' was trained for actions of"):
        latentplan.collect("cloth", policy="rope-cfm", episodes=1, out=tmp_path / "b.zarr")
    assert not (tmp_path / "b.zarr").exists()


def test_a_run_without_its_data_is_told_in_one_line(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rope-cfm: has no config\.yaml; give the folder"):
        latentplan.improve("rope-cfm", out=tmp_path / "out")
    imported = tmp_path / "imported.zarr"
    with ZarrStore.open(trained.parent / "data.zarr") as store:
        with ZarrStore.create(imported, store.spec, settings={"format": "bag"}) as copy:
            for index in range(len(store)):
                copy.append(store.episode(index))
    steps = ["training.steps=1", "training.batch=4", "training.window=3"]
    run = latentplan.train("cfm", data=imported, run=tmp_path / "run", overrides=[*SMALL, *steps])
    with pytest.raises(ConfigError, match="were not collected from a registered env"):
        latentplan.improve(run.folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
