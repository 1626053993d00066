"""What every importer promises, over each registered one that a sample can be written for here."""

from __future__ import annotations

import json
import pickle
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
from latentplan.errors import SourceError
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


def test_an_empty_folder_and_none_are_refused(made: Any, tmp_path: Path) -> None:
    kind, _ = made
    for where in (tmp_path, tmp_path / "none"):
        with pytest.raises(SourceError, match=str(where)):
            kind(where, kind.Config())
