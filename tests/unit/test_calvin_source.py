"""CALVIN's data sets, written here in their layout, read as episodes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calvin_writer import SEGMENTS, WINDOWS, recording, save_language, write

from latentplan.data import conventions
from latentplan.data.sources.calvin import Calvin
from latentplan.errors import BudgetError, ConfigError, SourceError
from latentplan.types import Episode, Label

SAMPLE = Path(__file__).parents[3] / "shared/data/calvin_sample"
FIRST = SEGMENTS[0][0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("calvin"))


def opened(root: Path, **values: Any) -> Calvin:
    return Calvin(root, Calvin.Config(**values))


def frame(root: Path, number: int, split: str = "training") -> Path:
    return root / split / f"episode_{number:07d}.npz"


def assert_is(episode: Episode, root: Path, first: int, *, action: str) -> None:
    for row in range(len(episode) + 1):
        with np.load(frame(root, first + row)) as wanted:
            assert set(wanted) == set(episode.observations)
            for key in wanted:
                np.testing.assert_array_equal(
                    episode.observations[key][row], wanted[key], strict=True
                )
            if row < len(episode):
                assert (episode.actions[row] == wanted[action].astype(np.float32)).all()


@pytest.mark.parametrize(("action", "name"), [("relative", "rel_actions"), ("absolute", "actions")])
def test_every_number_and_pixel_is_the_files(root: Path, action: str, name: str) -> None:
    source = opened(root, action=action)
    assert len(source) == 2  # the third recording has one frame
    for index, (first, last) in enumerate(SEGMENTS[:2]):
        episode = source.episode(index)
        assert len(episode) == last - first  # both ends are included
        assert_is(episode, root, first, action=name)
        assert episode.truncated and not episode.terminated and not episode.rewards.any()
        assert episode.info == {"frame": float(first), "scene": 3.0}


@pytest.mark.parametrize("length", [1, 3, 7, 20, 21])
def test_pieces_share_the_frame_where_they_meet_and_lose_no_transition(
    root: Path, length: int
) -> None:
    whole, source = opened(root), opened(root, length=length)
    pieces = [source.episode(index) for index in range(len(source))]
    assert max(map(len, pieces)) <= length
    assert max(map(len, pieces[:-1])) - min(map(len, pieces[:1])) <= 1
    starts = [int(piece.info["frame"]) for piece in pieces]
    for index, (first, last) in enumerate(SEGMENTS[:2]):
        mine = [p for p, start in zip(pieces, starts, strict=True) if first <= start < last]
        actions = np.concatenate([piece.actions for piece in mine])
        np.testing.assert_array_equal(actions, whole.episode(index).actions)
        for before, after in zip(mine, mine[1:], strict=False):
            for key, rows in before.observations.items():
                np.testing.assert_array_equal(rows[-1], after.observations[key][0])


def test_windows_become_labels_cut_to_their_piece(root: Path) -> None:
    whole = opened(root)
    (a, *_), (b, *_), (c, *_) = WINDOWS
    assert whole.episode(0).labels == (
        Label(a, "open_drawer", 2, 8),
        Label(b, "open_drawer", 5, 13),
    )
    assert whole.episode(1).labels == (Label(c, "turn_on_led", 0, 9),)
    pieces = opened(root, length=5)  # frames 0 to 5, 5 to 10, 10 to 15, 15 to 20; 0 to 4 or 5, ...
    said = [[(x.text, x.start, x.stop) for x in pieces.episode(i).labels] for i in range(6)]
    assert said[:4] == [[(a, 2, 5)], [(a, 0, 3), (b, 0, 5)], [(b, 0, 3)], []]
    assert said[4] == [(c, 0, len(pieces.episode(4)))] == [(c, 0, 4)]
    assert whole.settings["annotations"] == 3 and whole.settings["annotations_outside"] == 0


def test_other_words_and_none(tmp_path: Path) -> None:
    root = write(tmp_path / "a")
    (root / "training/lang_other").mkdir()
    save_language(root / "training/lang_other", (("x", "y", FIRST, FIRST + 1), ("far", "y", 7, 9)))
    source = opened(root, language="lang_other")
    assert source.episode(0).labels == (Label("x", "y", 0, 1),)
    assert source.settings["annotations_outside"] == 1
    assert opened(root, language="").episode(0).labels == ()
    there = "language: no annotations 'lang_oter'; there are: lang_annotations, lang_other"
    with pytest.raises(SourceError, match=there):
        opened(root, language="lang_oter")
    words = root / "training/lang_annotations/auto_lang_ann.npy"
    words.rename(root / "training/auto_lang_ann.npy")
    assert len(opened(root).episode(0).labels) == 2
    (root / "training/auto_lang_ann.npy").unlink()
    with pytest.raises(SourceError, match="no annotations 'lang_annotations'; there are: lang_o"):
        opened(root)
    (root / "training/lang_other/auto_lang_ann.npy").unlink()
    source = opened(root)
    assert source.notes == [f"{root}/training: has no annotations, so episodes have no labels"]
    with pytest.raises(SourceError, match="no annotations 'lang_x'; there are: none; an empty"):
        opened(root, language="lang_x")


def test_an_action_is_the_change_to_the_next_frame(root: Path) -> None:
    """Alignment, by the convention that each spec says: action t goes from frame t to t + 1."""
    relative, absolute = (opened(root, action=a) for a in ("relative", "absolute"))
    poses = []
    for source in (relative, absolute):
        episode = source.episode(0)
        seen = episode.observations["robot_obs"]
        poses = conventions.pose(seen[:, :3], seen[:, 3:6], kind="euler_xyz")
        convention = source.spec.action.convention
        assert convention is not None
        goes_to = conventions.convert(
            episode.actions, poses[:-1], source=convention, target=absolute.spec.action.convention
        )
        free = (np.abs(relative.episode(0).actions[:, :6]) < 1).all(axis=1)  # not clipped
        assert free.sum() > 3
        np.testing.assert_allclose(goes_to[free, :3], seen[1:][free, :3], atol=1e-6)
        off = conventions.wrap(goes_to[free, 3:6] - seen[1:][free, 3:6])
        np.testing.assert_allclose(off, 0, atol=1e-6)
        hand = seen[1:, 14]  # the gripper action before this frame; 1 opens
        opens = convention.gripper == "close_is_-1"
        assert opens and (episode.actions[:, 6] == hand).all()
    assert (np.abs(relative.episode(0).actions) <= 1).all()
    assert absolute.spec.action.low == (-4.0,) * 7  # of statistics.yaml


def test_what_is_chosen_alone_is_read(root: Path) -> None:
    source = Calvin(root, keys=["robot_obs", "rgb_gripper", "scene_obs"])
    assert source.spec.privileged == ("scene_obs",)
    episode = source.episode(1)
    assert list(episode.observations) == ["robot_obs", "rgb_gripper", "scene_obs"]
    wanted = recording(*SEGMENTS[1])[3]["rgb_gripper"]
    np.testing.assert_array_equal(episode.observations["rgb_gripper"][3], wanted)


def test_a_split_is_found_or_those_there_are_listed(root: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no split 'validation'; splits there: training"):
        opened(root, split="validation")
    with pytest.raises(SourceError, match=f"is a split; give {root} and split=training"):
        opened(root / "training")
    with pytest.raises(SourceError, match="not a CALVIN data set: no folder in it has ep_start"):
        opened(tmp_path)
    with pytest.raises(SourceError, match="none: no such folder"):
        opened(tmp_path / "none")
    with pytest.raises(ConfigError, match="Calvin.action: 'delta' is not relative or absolute"):
        opened(root, action="delta")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    return write(tmp_path / "damaged")


def test_a_missing_frame_is_named(damaged: Path) -> None:
    file = frame(damaged, FIRST + 4)
    file.unlink()
    with pytest.raises(SourceError, match=f"{file}: is missing"):
        opened(damaged).episode(0)
    assert len(opened(damaged).episode(1)) == 9  # the other recording is whole
    for number in range(FIRST, FIRST + 60):
        frame(damaged, number).unlink(missing_ok=True)
    with pytest.raises(SourceError, match=f"episode_0{FIRST}.npz: is missing"):
        opened(damaged)


def test_a_truncated_or_changed_file_is_named(damaged: Path) -> None:
    file = frame(damaged, FIRST + 2)
    content = file.read_bytes()
    spoilt = bytearray(content)
    spoilt[len(content) // 2] ^= 0x10
    for wrong in (content[:-100], content[: len(content) // 2], b"", bytes(spoilt)):
        file.write_bytes(wrong)
        with pytest.raises(SourceError, match=f"{file}: .*(cannot be read|not an .npz)"):
            opened(damaged).episode(0)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rel_actions", np.array([0.1, np.nan, 0, 0, 0, 0, 1]), "rel_actions is NaN or infinite"),
        ("robot_obs", np.full(15, np.inf), "robot_obs is NaN or infinite"),
        ("robot_obs", np.zeros(14), r"robot_obs is float64 \(14,\), unlike .* float64 \(15,\)"),
        ("rgb_static", np.zeros((40, 40, 3)), r"rgb_static is float64 \(40, 40, 3\), unlike"),
        ("scene_obs", np.array([None] * 24), "scene_obs cannot be read .*objects"),
        ("scene_obs", None, "has no array 'scene_obs'; it has actions"),
    ],
)
def test_an_odd_array_is_named(damaged: Path, key: str, value: Any, says: str) -> None:
    file = frame(damaged, FIRST + 3)
    with np.load(file) as arrays:
        changed = {**arrays, key: value}
    if value is None:
        del changed[key]
    np.savez_compressed(file, **changed)
    with pytest.raises(SourceError, match=f"{file}: {says}"):
        opened(damaged).episode(0)


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/latentplan-was-here",)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ep_start_end_ids.npy", np.array([[1, 2, 3]]), "needs an array"),
        ("ep_start_end_ids.npy", np.array([[5.0, 7.0]]), "needs whole numbers"),
        ("ep_start_end_ids.npy", np.array([[9, 7]]), "ends before it begins"),
        ("ep_start_end_ids.npy", np.array([[0, 10**13]]), "ends at frame 10000000000000"),
        ("ep_start_end_ids.npy", np.array([[1, 2**64 - 2]], np.uint64), "ends at frame 18446"),
        ("ep_start_end_ids.npy", np.array([[FIRST, FIRST]]), "no recording has two frames"),
        ("ep_start_end_ids.npy", np.array(Runs(), object), "refers to posix.system"),
        ("lang_annotations/auto_lang_ann.npy", np.array(Runs(), object), "refers to posix.system"),
        ("lang_annotations/auto_lang_ann.npy", np.array({}, object), "not CALVIN's annotations"),
        ("scene_info.npy", np.array({"D": 3}, object), "not CALVIN's scenes"),
    ],
)
def test_odd_tables_are_named(damaged: Path, name: str, value: np.ndarray, says: str) -> None:
    np.save(damaged / "training" / name, value, allow_pickle=True)
    with pytest.raises(SourceError, match=f"{damaged}/training/{name}: .*{says}"):
        opened(damaged)
    assert not Path("/tmp/latentplan-was-here").exists()


def test_episodes_are_held_to_the_budget(damaged: Path) -> None:
    np.save(damaged / "training/ep_start_end_ids.npy", np.array([[0, 10**9]]))
    with pytest.raises(BudgetError, match="ep_start_end_ids.npy: needs 3,906,250 items"):
        opened(damaged)


def test_odd_statistics_are_named(damaged: Path) -> None:
    file = damaged / "training/statistics.yaml"
    file.write_text("act_min_bound: [a, b]")
    with pytest.raises(SourceError, match=f"{file}: not CALVIN's statistics"):
        opened(damaged)
    file.unlink()
    assert opened(damaged, action="absolute").spec.action.high[:3] == (1.0,) * 3


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"needs the real env's frames: {SAMPLE} is missing")
def test_frames_of_the_real_env_are_read() -> None:
    for split, lengths in {"training": [47, 27], "validation": [43]}.items():
        source = opened(SAMPLE, split=split)
        found = [source.episode(index) for index in range(len(source))]
        assert [len(episode) for episode in found] == lengths
        first = int(found[0].info["frame"])
        with np.load(frame(SAMPLE, first + 5, split)) as wanted:
            for key in wanted:
                np.testing.assert_array_equal(found[0].observations[key][5], wanted[key])
        assert all(len(episode.labels) == 1 for episode in found)
        assert source.spec.observation["depth_static"].shape == (200, 200)
