"""The comparison of imagined video: its figures, its masks, and what it refuses."""

import json

import numpy as np
import pytest
from moving_square import FEW, stored

from latentplan.api.bench_video import REPEAT, bench_video
from latentplan.api.train import train
from latentplan.errors import ConfigError, StoreError
from latentplan.evaluation import objects, open_loop
from latentplan.types import ActionSpec, ArraySpec, PickSpec, Spec

TABLETOP = Spec({"rgb": ArraySpec((8, 8, 3), "uint8")}, ActionSpec((0.0,), (1.0,)), "tabletop")


def test_masks_are_of_the_nearest_colour():
    image = np.full((8, 8, 3), (204, 172, 140), np.uint8)
    image[1:4, 1:4], image[5:7, 5:7] = (200, 30, 30), (40, 60, 210)
    found = objects.masks(image, TABLETOP)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        "red block": 9, "blue block": 4, "pink block": 0, "gripper": 0, "drawer": 0,
    }  # fmt: skip
    assert tuple(found) == objects.known(TABLETOP)


def test_what_can_be_picked_is_the_object_of_other_envs():
    pick = PickSpec("rgb", (150, 150, 150))
    spec = Spec(TABLETOP.observation, TABLETOP.action, "rope", pick=pick)
    image = np.zeros((8, 8, 3), np.uint8)
    image[2] = 200
    assert objects.masks(image, spec)["rope"].sum() == 8
    assert objects.masks(image, Spec(TABLETOP.observation, TABLETOP.action)) == {}


def example(shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Return true frames (6, 3, 8, 8, 3) of a square that moves, and imagined ones, shifted."""
    truth = np.full((6, 3, 8, 8, 3), (204, 172, 140), np.uint8)
    imagined = truth.copy()
    for t in range(3):
        truth[:, t, 2:5, t + 1 : t + 4] = (208, 24, 24)
        imagined[:, t, 2:5, t + 1 + shift : t + 4 + shift] = (208, 24, 24)
    return truth, imagined


@pytest.mark.parametrize(("shift", "kept"), [(0, 1.0), (1, 1.0), (2, 0.0)])
def test_objects_are_kept_if_half_of_them_overlaps(shift, kept):
    truth, imagined = example(shift)
    masks, found = (objects.masks(each, TABLETOP) for each in (truth, imagined))
    errors = open_loop.errors(truth, imagined, last=truth[:, 0], masks=masks, found=found)
    rows = open_loop.figures(errors, errors, steps=[3])["3"]
    assert rows["kept"]["red block"] == {"value": kept, "ci95": [kept, kept]}
    assert rows["kept"]["gripper"]["value"] is None  # not in the truth


def test_the_error_is_of_pixels_that_move():
    truth, _ = example(0)
    last = truth[:, 0]
    still = np.repeat(last[:, None], 3, axis=1)
    errors = open_loop.errors(truth, still, last=last, masks={}, found={})
    assert (errors.pixels[:, 0] == 0).all() and (errors.pixels[:, 1] == 3 * 6).all()
    better = open_loop.errors(truth, truth // 2 + still // 2, last=last, masks={}, found={})
    gain = open_loop.figures(better, errors, steps=[1, 3])
    assert gain["1"]["psnr_moving"]["value"] is None or gain["1"]["gain"]["value"] == 0
    assert gain["3"]["gain"]["value"] == pytest.approx(6, abs=0.2)  # half the error
    low, high = gain["3"]["gain"]["ci95"]
    assert low <= gain["3"]["gain"]["value"] <= high


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("bench")
    train("teco", data=stored(made / "data.zarr"), run=made / "teco", overrides=FEW)
    return made


def test_runs_are_compared_and_drawn(folder):
    runs, data = [folder / "teco"], folder / "data.zarr"
    found = bench_video(runs, data=data, out=folder / "out", steps=4, split="all")
    assert list(found.models) == [REPEAT, "teco: tokenizer", "teco"] and not found.refused
    written = json.loads(found.results.read_text())
    assert written["models"] == found.models and written["settings"]["clips"] == 6
    assert list(found.models["teco"]) == ["1", "2", "4"]
    assert "| teco |" in found.page.read_text()
    assert (folder / "out" / "rgb.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_compared_is_refused(folder):
    runs, data, out = [folder / "teco"], folder / "data.zarr", folder / "no"
    with pytest.raises(StoreError, match="0 episodes have 18 observations, need 2"):
        bench_video(runs, data=data, out=out, split="all")
    with pytest.raises(ConfigError, match="split: found 'train', need test or all"):
        bench_video(runs, data=data, out=out, split="train")
    with pytest.raises(ConfigError, match="has no images 'wrist'"):
        bench_video(runs, data=data, out=out, camera="wrist")
    with pytest.raises(ConfigError, match="runs: found none"):
        bench_video([], data=data, out=out)
    assert not out.exists()
