"""What counts as an image, how other forms of images become rgb, and what never does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentplan.data.images import as_rgb, is_image, may_be_rgb
from latentplan.data.selection import Selection, resized
from latentplan.data.sources.robomimic import Robomimic
from latentplan.errors import ConfigError, ShapeError, SourceError
from latentplan.types import ActionSpec, ArraySpec, Episode, Spec

RGB = np.random.default_rng(0).integers(0, 256, (3, 32, 40, 3), np.uint8)
GREY = RGB[..., :1]
FORMS: dict[str, tuple[np.ndarray, np.ndarray]] = {  # as found, and as rgb
    "rgb": (RGB, RGB),
    "rgb with channels first": (np.moveaxis(RGB, -1, 1), RGB),
    "floats": (RGB.astype(np.float32) / 255, RGB),
    "floats with channels first": (np.moveaxis(RGB / 255, -1, 1), RGB),
    "grey": (GREY[..., 0], GREY.repeat(3, -1)),
    "grey with a channel": (GREY, GREY.repeat(3, -1)),
    "grey with the channel first": (np.moveaxis(GREY, -1, 1), GREY.repeat(3, -1)),
}
NUMBERS: dict[str, np.ndarray] = {
    "image": np.zeros((3, 5), np.float32),  # a state vector, whatever its name
    "depth": RGB[..., 0] / np.float32(255),
    "front_segmentation": GREY,
    "point_cloud": RGB / np.float32(255),
    "height_map": RGB[..., 0] / np.float32(255),  # floats of one channel are no colours
    "positions": RGB / np.float32(8),  # floats outside 0 to 1
    "cells": RGB[:, :7, :7],  # MiniGrid's map of 7 x 7 cells
    "frames": RGB[:, :, :, [0, 1, 2, 0]],  # alpha, or a stack of four grey images
    "wide": RGB.astype(np.uint16),
    "signed": RGB.astype(np.int64),
}


class Arrays:
    """A Source of two episodes of given observations."""

    @dataclass(frozen=True)
    class Config:
        """No settings."""

    settings: dict[str, Any] = {}

    def __init__(self, *episodes: dict[str, np.ndarray]) -> None:
        self.episodes = episodes
        first = next(e for e in episodes if e)
        shapes = {key: ArraySpec(v.shape[1:], v.dtype.name) for key, v in first.items()}
        self.spec = Spec(shapes, ActionSpec((-1.0,), (1.0,)))

    def __len__(self) -> int:
        return len(self.episodes)

    def episode(self, index: int) -> Episode:
        if not self.episodes[index]:
            raise SourceError(f"{index}: is damaged")
        return Episode(self.episodes[index], np.zeros((2, 1), np.float32), np.zeros(2, np.float32))


@pytest.mark.parametrize("form", FORMS)
def test_an_image_of_any_form_is_imported_as_rgb(form: str) -> None:
    found, wanted = FORMS[form]
    source = Selection(Arrays({}, {"view": found}))  # the first episode is damaged
    assert source.spec.observation["view"] == ArraySpec((32, 40, 3), "uint8")
    assert is_image(source.spec.observation["view"])
    got = source.episode(1).observations["view"]
    np.testing.assert_array_equal(got, wanted, strict=True)
    assert bool(source.notes) == (form != "rgb")

    small = Selection(Arrays({"view": found}), size=16)
    assert small.spec.observation["view"].shape == (16, 16, 3)
    got = small.episode(0).observations["view"]
    np.testing.assert_array_equal(got, resized(np.ascontiguousarray(wanted), 16), strict=True)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_no_colours_stay_as_they_are(name: str) -> None:
    source = Selection(Arrays({name: NUMBERS[name]}))
    assert not source.notes and not is_image(source.spec.observation[name])
    got = source.episode(0).observations[name]
    np.testing.assert_array_equal(got, NUMBERS[name], strict=True)


def test_what_an_array_means_decides_as_its_name_does() -> None:
    array = ArraySpec((32, 40, 3), "float32", "x, y, z in m of the point that a pixel shows")
    assert may_be_rgb("front", ArraySpec((32, 40, 3), "float32"))
    assert not may_be_rgb("front", array)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_resizing_keeps_channels_first(channels: int) -> None:
    last = np.random.default_rng(1).random((2, 30, 20, channels), np.float32)
    found = resized(np.moveaxis(last, -1, 1), 16)
    np.testing.assert_array_equal(found, np.moveaxis(resized(last, 16), -1, 1), strict=True)
    stack = Selection(Arrays({"stack": np.zeros((3, 4, 84, 90), np.uint8)}), size=32)
    assert stack.spec.observation["stack"].shape == (4, 32, 32)
    assert stack.episode(0).observations["stack"].shape == (3, 4, 32, 32)


def test_a_later_image_outside_the_range_is_refused_and_a_size_needs_an_image() -> None:
    good = {"view": RGB.astype(np.float32) / 255}
    for bad, says in ((1.5, "from 0 to 1.5"), (np.nan, "from nan to nan"), (-0.1, "from -0.1")):
        changed = {"view": good["view"].copy()}
        changed["view"][1, 2, 3, 0] = bad
        source = Selection(Arrays(good, changed))
        with pytest.raises(ShapeError, match=rf"view: found float32 \(32, 40, 3\) {says}"):
            source.episode(1)
    with pytest.raises(ShapeError, match=r"x: found int64 \(32, 40, 3\), need images"):
        as_rgb("x", RGB.astype(np.int64))
    with pytest.raises(ConfigError, match=r"image_size: found 64, but none .* cells \(7, 7, 3\)"):
        Selection(Arrays({"cells": NUMBERS["cells"]}), size=64)


@pytest.mark.parametrize("first", [True, False])
def test_flip_turns_rows_and_no_colours(tmp_path: Path, first: bool) -> None:
    h5py = pytest.importorskip("h5py")
    stored = np.moveaxis(RGB, -1, 1) if first else RGB
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"] = np.zeros((2, 7))
        demo["obs/view"], demo["next_obs/view"] = stored[:-1], stored[1:]
    source = Selection(Robomimic(tmp_path / "a.hdf5", Robomimic.Config(flip=True)))
    np.testing.assert_array_equal(source.episode(0).observations["view"], RGB[:, ::-1])
