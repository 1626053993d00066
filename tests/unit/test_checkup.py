"""The checks of recorded episodes: each of 32 seeded faults is found, and nothing in clean data."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from latentplan.api.checkup import check_up, summary
from latentplan.cli import app
from latentplan.data.checkup import cameras, episodes, numbers
from latentplan.data.checkup.seen import look
from latentplan.data.store import ZarrStore
from latentplan.errors import StoreError
from latentplan.types import ActionSpec, ArraySpec, Episode, Label, Spec

LENGTH, COUNT, DT = 24, 8, 0.1
SPEC = Spec(
    {
        "rgb": ArraySpec((24, 24, 3), "uint8"),
        "state": ArraySpec((3,)),
        "timestamp": ArraySpec((1,)),
    },
    ActionSpec((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)),
    dt=DT,
)


def clean(number: int) -> Episode:
    """Return an episode of an arm whose actions are displacements, seen by a camera above."""
    rng = np.random.default_rng(number)
    actions = rng.uniform(-0.9, 0.9, (LENGTH, 3))
    state = rng.uniform(-0.3, 0.3, 3) + np.r_[np.zeros((1, 3)), 0.02 * actions.cumsum(0)]
    image = np.zeros((LENGTH + 1, 24, 24, 3), np.uint8)
    image[:] = np.linspace(20, 120, 24)[:, None, None]  # darker at the top
    image[:, :, :6] += np.array([90, 30, 0], np.uint8)  # a wall on the left
    for row, (x, y, _) in zip(image, (state * 20 + 12).astype(int), strict=True):
        row[max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = (30, 60, 220)
        row[x % 24, y % 24] = rng.integers(0, 255, 3)
    time = DT * np.arange(LENGTH + 1)[:, None]
    seen = {"rgb": image, "state": state, "timestamp": time + 1e-3 * rng.normal(size=time.shape)}
    kept = {k: v.astype(SPEC.observation[k].dtype) for k, v in seen.items()}
    labels = (Label("push the block"),)
    return Episode(
        kept, actions.astype(np.float32), np.zeros(LENGTH, np.float32), labels=labels
    )


def changed(episode: Episode, key: str, change) -> Episode:
    """Return an episode whose array is a changed copy."""
    if key == "action":
        return replace(episode, actions=np.asarray(change(episode.actions.copy()), np.float32))
    rows = episode.observations[key]
    new = np.asarray(change(rows.copy()), rows.dtype)
    return replace(episode, observations={**episode.observations, key: new})


def setting(where, value):
    def change(rows):
        rows[where] = value
        return rows

    return change


def cut(episode: Episode, length: int) -> Episode:
    seen = {key: rows[: length + 1] for key, rows in episode.observations.items()}
    return replace(
        episode, observations=seen, actions=episode.actions[:length],
        rewards=episode.rewards[:length],
    )  # fmt: skip


def repeated(rows):
    rows[1::2] = rows[:-1:2][: len(rows[1::2])]
    return rows


def later(rows, count):
    return np.concatenate([rows[:1].repeat(count, 0), rows[:-count]])


def stuck(actions):
    """Return actions whose second number is mostly at its upper bound."""
    actions[:, 1] = np.minimum(20 * np.abs(actions[:, 1]), 1)
    return actions


def frozen(rows):
    rows[8:] = rows[8]
    return rows


def added(where, value):
    def change(rows):
        rows[where] += value
        return rows

    return change


HALF = slice(LENGTH // 2, None)
# Name of the finding, its place, the episodes that have the fault (None: all), and the fault.
FAULTS = [
    ("not finite", "state", [3], lambda e: changed(e, "state", setting((5, 1), np.nan))),
    ("not finite", "state", [2, 5], lambda e: changed(e, "state", setting((0, 0), np.inf))),
    ("not finite", "action", [1], lambda e: changed(e, "action", setting((7, 2), np.nan))),
    ("out of bounds", "action[0]", [4], lambda e: changed(e, "action", setting((9, 0), 1.5))),
    ("out of bounds", "action[2]", [6], lambda e: changed(e, "action", setting((0, 2), -2))),
    ("saturated", "action[1]", None, lambda e: changed(e, "action", stuck)),
    ("unit", "action[0]", None, lambda e: changed(e, "action", lambda a: a * [0.001, 1, 1])),
    ("unit", "action[2]", None, lambda e: changed(e, "action", lambda a: a * [1, 1, 0.01])),
    ("constant", "action", None, lambda e: changed(e, "action", lambda a: a * [1, 1, 0])),
    ("constant", "state", None, lambda e: changed(e, "state", setting((slice(None), 2), 0.5))),
    ("no motion", "action", [2], lambda e: changed(e, "action", lambda a: 0 * a)),
    ("jump", "state[0]", [5], lambda e: changed(e, "state", setting((HALF, 0), 9.0))),
    ("jump", "state[1]", [1], lambda e: changed(e, "state", setting((8, 1), 4.0))),
    ("angle", "state[2]", [0, 7],
     lambda e: changed(e, "state", added((slice(9, None), 2), 2 * np.pi))),
    ("lag", "action[2]", None, lambda e: changed(e, "state", lambda s: later(s, 3))),
    ("lag", "action[2]", None, lambda e: changed(e, "action", lambda a: later(a, 2))),
    ("black image", "rgb", [3], lambda e: changed(e, "rgb", setting(HALF, 0))),
    ("white image", "rgb", [6], lambda e: changed(e, "rgb", setting(4, 255))),
    ("uniform image", "rgb", [1], lambda e: changed(e, "rgb", setting(11, 128))),
    ("frozen camera", "rgb", [4], lambda e: changed(e, "rgb", frozen)),
    ("frozen camera", "rgb", [0, 2], lambda e: changed(e, "rgb", lambda x: 0 * x + x[0])),
    ("repeated images", "rgb", None, lambda e: changed(e, "rgb", repeated)),
    ("flipped image", "rgb", [5], lambda e: changed(e, "rgb", lambda x: x[:, ::-1])),
    ("flipped image", "rgb", [2], lambda e: changed(e, "rgb", lambda x: x[:, ::-1, ::-1])),
    ("swapped colours", "rgb", [7], lambda e: changed(e, "rgb", lambda x: x[..., ::-1])),
    ("short episode", "", [6], lambda e: cut(e, 1)),
    ("text missing", "", [3, 4], lambda e: replace(e, labels=())),
    ("empty text", "", [1], lambda e: replace(e, labels=(Label(" "),))),
    ("clock", "timestamp", [2], lambda e: changed(e, "timestamp", setting(9, 0.2))),
    ("gap", "timestamp", [5], lambda e: changed(e, "timestamp", added(slice(7, None), 1))),
    ("jitter", "timestamp", None,
     lambda e: changed(e, "timestamp", added(slice(None, None, 2), 0.04))),
    ("rate", "timestamp", None, lambda e: changed(e, "timestamp", lambda t: 3 * t)),
]  # fmt: skip


def findings(data: list[Episode], spec: Spec = SPEC):
    seen = [look(number, episode, spec) for number, episode in enumerate(data)]
    return [*numbers.checks(seen, spec), *cameras.checks(seen), *episodes.checks(seen)]


def test_nothing_is_found_in_clean_data():
    assert findings([clean(n) for n in range(COUNT)]) == []


@pytest.mark.parametrize(
    ("name", "where", "which", "fault"), FAULTS, ids=[f"{f[0]}-{i}" for i, f in enumerate(FAULTS)]
)
def test_a_fault_is_found_in_its_episodes(name, where, which, fault):
    numbers_ = range(COUNT) if which is None else which
    data = [fault(clean(n)) if n in numbers_ else clean(n) for n in range(COUNT)]
    found = [f for f in findings(data) if f.check == name]
    assert [f.where for f in found][:1] == [where]
    assert found[0].episodes in ((), tuple(numbers_))
    if which is not None:
        assert found[0].episodes == tuple(which)


def test_a_row_is_that_of_the_first_episode():
    data = [clean(n) for n in range(COUNT)]
    data[3] = changed(data[3], "state", setting((5, 1), np.nan))
    found = next(f for f in findings(data) if f.check == "not finite")
    assert found.row == 5
    assert found.line().startswith("not finite: state, episode 3, row 5: NaN or infinite")


def test_the_same_episode_on_both_sides_is_a_leak():
    data = [clean(n) for n in range(COUNT)]
    data[6], data[7] = data[0], data[1]  # 0 is held out by default, 1, 6 and 7 are not
    found = {f.check: f.episodes for f in findings(data)}
    assert found == {"leak": (6,), "double": (7,)}


def test_an_episode_that_is_ten_times_as_long_is_named():
    data = [cut(clean(n), 2) for n in range(7)] + [clean(7)]
    assert {f.check: f.episodes for f in findings(data)}["long episode"] == (7,)


@pytest.fixture
def stored(tmp_path):
    with ZarrStore.create(tmp_path / "arm.zarr", SPEC) as store:
        for n in range(COUNT):
            black = changed(clean(n), "rgb", setting(HALF, 0))
            store.append(black if n == 3 else clean(n))
    return tmp_path / "arm.zarr"


def test_a_store_is_checked_and_its_faults_are_exit_code_2(stored, tmp_path):
    found = check_up(stored)
    assert not found.healthy and found.episodes == COUNT and found.rows == COUNT * (LENGTH + 1)
    assert [f.check for f in found.findings][:1] == ["black image"]
    assert list(summary(found))[-1].endswith("8 episodes, 200 rows: 2 faults, 0 notes")
    ran = CliRunner().invoke(app, ["doctor", str(stored), "--json"])
    assert ran.exit_code == 2
    assert json.loads(ran.stdout)["findings"][0]["episodes"] == [3]
    assert CliRunner().invoke(app, ["doctor", str(stored), "--episodes", "3"]).exit_code == 0


def test_a_store_without_episodes_is_refused(tmp_path):
    with ZarrStore.create(tmp_path / "none.zarr", SPEC):
        pass
    with pytest.raises(StoreError, match="has no episodes"):
        check_up(tmp_path / "none.zarr")
