"""What everything that is trained does with odd images: it trains, or refuses in one line first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trainings import every_name, settings

from latentplan.api.train import train
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError
from latentplan.types import ActionSpec, ArraySpec, Episode, Spec

IMAGES = {
    "float": ArraySpec((32, 32, 3), "float32"),
    "gray": ArraySpec((32, 32), "uint8"),
    "gray_channel": ArraySpec((32, 32, 1), "uint8"),
    "four_channels": ArraySpec((32, 32, 4), "uint8"),
    "channels_first": ArraySpec((3, 32, 32), "uint8"),
    "tiny": ArraySpec((8, 8, 3), "uint8"),
    "oblong": ArraySpec((32, 40, 3), "uint8"),
    "vector": ArraySpec((5,), "float32"),
    "signed": ArraySpec((32, 32, 3), "int64"),
}
ENCODED = {"gray_channel", "four_channels", "oblong"}
TRAINS = {  # all others are refused
    **dict.fromkeys(("autoencoder", "planet"), ENCODED),
    **dict.fromkeys(("calibrated", "cfm", "jepa", "joint"), ENCODED | {"vector"}),
    "pixel": ENCODED | {"tiny"},
    "lwm": {"tiny"},
    "povt": {"tiny"},
    "selftok": {"tiny"},
    "videogpt": {"tiny"},
    "video_vqvae": {"tiny"},
    "vqvae": {"tiny"},
}
LENGTH, EPISODES = 12, 4


def stored(path: Path, image: ArraySpec) -> Path:
    spec = Spec({"image": image}, ActionSpec((-1.0,) * 2, (1.0,) * 2))
    with ZarrStore.create(path, spec) as store:
        for number in range(EPISODES):
            rng = np.random.default_rng(number)
            high = 256 if image.dtype == "uint8" else 1
            seen = rng.uniform(0, high, (LENGTH, *image.shape)).astype(image.dtype)
            actions = rng.uniform(-1, 1, (LENGTH - 1, 2)).astype(np.float32)
            store.append(Episode({"image": seen}, actions, np.zeros(LENGTH - 1, np.float32)))
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a store of each kind of images."""
    folder = tmp_path_factory.mktemp("stores")
    return {name: stored(folder / f"{name}.zarr", image) for name, image in IMAGES.items()}


@pytest.mark.parametrize("image", IMAGES)
@every_name
def test_it_trains_or_refuses_in_one_line_before_anything_is_written(
    kind: str, name: str, image: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = {"kind": kind, "data": stores[image], "run": run, "overrides": settings(kind, name)}
    if image in TRAINS.get(name, ()):
        train(name, **options)
        points = [json.loads(line) for log in run.rglob("log.jsonl") for line in log.open()]
        losses = [each["loss"] for each in points if "loss" in each]
        assert len(losses) >= 2 and np.isfinite(losses).all()
        return
    with pytest.raises(ConfigError) as caught:
        train(name, **options)
    assert "\n" not in str(caught.value)
    assert not run.exists()
