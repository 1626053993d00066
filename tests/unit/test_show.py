from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from latentplan.api.show import describe
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, StoreError
from latentplan.types import ActionSpec, ArraySpec, Convention, Episode, Label, Spec

RGB, DEPTH = (20, 30, 3), (16, 16)
SPEC = Spec(
    {
        "rgb": ArraySpec(RGB, "uint8"),
        "depth": ArraySpec(DEPTH, "float32"),
        "q": ArraySpec((7,), "float32"),
    },
    ActionSpec((-1.0, -1.0), (1.0, 1.0)),
    dt=0.1,
)


def made(path: Path | str, spec: Spec = SPEC, *, length: int = 14) -> Path | str:
    """Return a store of three episodes; episode i shows grey 50 i, and says its mass is i."""
    with ZarrStore.create(path, spec) as store:
        for number in range(3):
            store.append(
                Episode(
                    observations={
                        key: np.full((length + 1, *a.shape), 50 * number, a.dtype)
                        for key, a in spec.observation.items()
                    },
                    actions=np.linspace(-1, 1, 2 * length, dtype=np.float32).reshape(length, 2),
                    rewards=np.zeros(length, np.float32),
                    info={"mass": float(number)} | ({"late": 7.0} if number else {}),
                )
            )
    return path


def run(what: str, **options: Any) -> None:
    for line in describe(what, **options):
        print(line)


def test_a_sheet_has_every_camera_and_histograms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(str(made(tmp_path / "a.zarr")))
    told = capsys.readouterr().out
    assert "3 episodes, 42 transitions" in told
    assert "mass: 0 to 2, mean 1, sum 3\n" in told
    assert "late: 7 to 7, mean 7, sum 14, of 2 episodes" in told
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    rgb, depth = 20 * 7 + 2, 16 * 8 + 2  # rows of framed pictures, at least 128 pixels high
    assert sheet.shape[1] == 10 * (30 * 7 + 2)
    for number in range(3):
        assert (sheet[number * (rgb + depth) + 50, 50] == 50 * number).all()
    histograms = sheet[3 * (rgb + depth) :]
    assert len(histograms) > 100 and histograms.std() > 10


def test_labels_are_counted_and_stand_above_their_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, action = made(tmp_path / "a.zarr"), Convention("ee_delta", "rotvec", gripper="open_is_1")
    with ZarrStore.open(path) as store:
        episodes = [store.episode(number) for number in range(3)]
    open_it, shut_it = Label("open it", "open", 0, 5), Label("shut it", "close", 5)
    said = [(), (open_it, shut_it), (open_it,)]
    spec = replace(SPEC, action=replace(SPEC.action, convention=action))
    with ZarrStore.create(tmp_path / "b.zarr", spec) as store:
        for episode, labels in zip(episodes, said, strict=True):
            store.append(replace(episode, labels=labels))
    for name in ("a", "b"):
        run(str(tmp_path / f"{name}.zarr"))
    told = capsys.readouterr().out
    assert "labels       close: 1, shut it\nlabels       open: 2, open it\n" in told
    assert "convention   control ee_delta, rotation rotvec, position_unit 1.0" in told
    before, after = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ab")
    tall = 20 * 7 + 2 + 16 * 8 + 2  # an episode's pictures
    assert len(after) == len(before) + 2 * 24  # a line above the second, and above the third
    line = after[tall : tall + 24]
    assert line.max() > 200 and (after[tall + 24 + 50, 50] == 50).all()


def test_a_sheet_of_an_episode_has_all_its_steps(tmp_path: Path) -> None:
    path = str(made(tmp_path / "a.zarr"))
    run(path, out=str(tmp_path / "all.png"))
    run(path, out=str(tmp_path / "one.png"), episode=-2)
    every, one = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("all", "one"))
    assert len(every) - len(one) == (20 * 7 + 2) + (16 * 8 + 2)  # 3 and 2 rows of each camera
    assert (one[50, 50] == 50).all()


@pytest.mark.parametrize(("episode", "grey"), [(None, 0), (2, 100), (-2, 50)])
def test_a_video_of_an_episode(tmp_path: Path, episode: int | None, grey: int) -> None:
    file = tmp_path / "episode.mp4"
    run(str(made(tmp_path / "a.zarr")), out=str(file), episode=episode)
    frames = imageio_ffmpeg.read_frames(file)
    about = next(frames)
    assert about["fps"] == 10
    pictures = [np.frombuffer(f, np.uint8).reshape(*about["size"][::-1], 3) for f in frames]
    assert len(pictures) == 15
    assert abs(int(pictures[7][100, 100, 0]) - grey) < 6
    assert np.abs(pictures[1].astype(int) - pictures[7])[:24].max() > 50  # the line of text


def test_depth_is_shown_from_near_to_far(tmp_path: Path) -> None:
    from latentplan.api.store_images import _visible

    depth = np.array([[0.5, 1.0], [1.5, np.inf]], np.float32)[None]
    grey = _visible(depth)
    assert grey.shape == (1, 2, 2, 3) and grey.dtype == np.uint8
    assert grey[0, ..., 0].tolist() == [[0, 127], [255, 255]]


def test_a_store_without_pictures_has_histograms(tmp_path: Path) -> None:
    spec = Spec({"q": ArraySpec((7,), "float32")}, SPEC.action)
    path = str(made(tmp_path / "a.zarr", spec))
    run(path)
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 10
    with pytest.raises(StoreError, match="no images to make a video of"):
        run(path, out=str(tmp_path / "a.mp4"))


def test_a_store_at_a_url_is_drawn_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(str(made("memory://test_show/far.zarr")))
    assert (tmp_path / "far.png").exists()


def test_what_cannot_be_shown_is_told(tmp_path: Path, untrained_run: Path) -> None:
    path = str(made(tmp_path / "a.zarr"))
    with pytest.raises(ConfigError, match=r"show.episode: 3 is not within \[-3, 2\]"):
        run(path, episode=3)
    with pytest.raises(ConfigError, match="show.out: 'a.jpg' must end with .png or .mp4"):
        run(path, out="a.jpg")
    with pytest.raises(ConfigError, match="show.out: 'a.mp4' must end with .png$"):
        run(str(untrained_run), out="a.mp4")
    with pytest.raises(ConfigError, match="show.episode: .* is a run"):
        run(str(untrained_run), episode=1)
