"""Random damage to a data set of every format: an error of the package, and the rest is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import calvin_writer
import lerobot_writer
import minari_writer
import numpy as np
import pytest
import rlbench_writer
import robomimic_writer
import source_mutations

from latentplan import registry
from latentplan.api.import_data import import_data
from latentplan.data.importing import Opening
from latentplan.data.store import ZarrStore
from latentplan.errors import LatentplanError, ShapeError, SourceError

CALVIN = {"segments": ((100, 105), (110, 113)), "windows": (("a", "b", 101, 104),)}
SAMPLES: dict[str, Callable[[Path], Path]] = {
    "calvin": lambda folder: calvin_writer.write(folder, **CALVIN),
    "lerobot": lambda folder: lerobot_writer.dataset(folder),
    "lerobot images": lambda folder: lerobot_writer.dataset(folder, kind="image"),
    "minari": lambda folder: minari_writer.write(folder),
    "minari nested": lambda folder: minari_writer.write(
        folder, nested=True, space={"type": "Discrete", "n": 3}
    ),
    "rlbench": lambda folder: rlbench_writer.write_rlbench(folder, length=3, size=16),
    "robomimic": lambda folder: robomimic_writer.write(folder / "a.hdf5", numbers=(0, 1, 2)),
}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_damage_is_an_error_of_the_package(name: str, tmp_path: Path) -> None:
    damage(name, tmp_path, range(8))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_any_damage_is_an_error_of_the_package(name: str, tmp_path: Path) -> None:
    damage(name, tmp_path, range(8, 300))


def damage(name: str, tmp_path: Path, seeds: range) -> None:
    """Damage a data set in the way of each seed, and read what is left of it."""
    sample, kind = SAMPLES[name](tmp_path / "sample"), registry.get("source", name.split()[0])
    read = 0
    for seed in seeds:
        work = source_mutations.copy(sample, tmp_path / f"damaged{sample.suffix}")
        how = source_mutations.mutate(work, seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)  # of casts that lose a value
                read += _read(Opening(kind, work, kind.Config()))
        except LatentplanError as e:
            assert "\n" not in str(e), how
        except Exception as e:
            raise AssertionError(f"seed {seed}, {how}: {type(e).__name__}") from e
    assert read


def _read(opening: Opening) -> int:
    """Read all episodes as an import does, without a store; return how many fit the spec."""
    source, good = opening.open(), 0
    for index in range(len(source)):
        try:
            with opening.reading():
                episode = source.episode(index)
        except (SourceError, ShapeError) as e:
            assert "\n" not in str(e)
            continue
        assert list(episode.observations) == list(source.spec.observation)
        for key, array in source.spec.observation.items():
            values = episode.observations[key]
            assert values.shape == (len(episode) + 1, *array.shape), key
            assert values.dtype == array.dtype and np.isfinite(values).all(), key
        assert episode.actions.dtype == np.float32 and np.isfinite(episode.actions).all()
        assert (episode.actions >= source.spec.action.low).all() or source.spec.env
        good += 1
    return good


def spoil_calvin(root: Path) -> None:
    (root / "training/episode_0000102.npz").unlink()


def spoil_lerobot(root: Path) -> None:
    (root / "videos/observation.images.top/chunk-000/file-001.mp4").unlink()


def spoil_minari(root: Path) -> None:
    import h5py

    with h5py.File(root / "data/main_data.hdf5", "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = np.zeros((0, 2))


def spoil_rlbench(root: Path) -> None:
    file = root / "reach_target/variation0/episodes/episode0/low_dim_obs.pkl"
    file.write_bytes(file.read_bytes()[:-30])


def spoil_robomimic(path: Path) -> None:
    import h5py

    with h5py.File(path, "a") as file:
        for demo, name in (("demo_0", "actions"), ("demo_1", "obs/object")):
            del file[f"data/{demo}/{name}"]
            file[f"data/{demo}/{name}"] = np.zeros((0, 7))


SPOILT: dict[str, tuple[Callable[[Path], None], int, list[str]]] = {
    "calvin": (spoil_calvin, 1, ["episode_0000102.npz: is missing"]),
    "lerobot": (spoil_lerobot, 2, ["file-001.mp4: no such file"]),
    "minari": (spoil_minari, 3, ["episode_0/actions: the episode is empty"]),
    "rlbench": (spoil_rlbench, 1, ["low_dim_obs.pkl: not a pickle"]),
    "robomimic": (
        spoil_robomimic,
        1,
        ["demo_0/actions: has shape (0, 7)", "demo_1/obs/object has 0 rows for 4 actions"],
    ),
}


@pytest.mark.parametrize("name", sorted(SPOILT))
def test_the_good_rest_is_imported_and_the_others_counted_by_reason(
    name: str, tmp_path: Path
) -> None:
    spoil, good, reasons = SPOILT[name]
    data = SAMPLES[name](tmp_path / "sample")
    spoil(data)
    options: dict[str, Any] = {"out": tmp_path / "a.zarr", "workers": 0}
    with pytest.raises(SourceError, match="skip_bad leaves such episodes out"):
        import_data(name, data, **options)
    found = import_data(name, data, skip_bad=True, **options)
    with ZarrStore.open(tmp_path / "a.zarr") as store:
        assert len(store) == found.episodes == good
    assert list(found.reasons.values()) == [1] * len(reasons)
    for reason, wanted in zip(found.reasons, reasons, strict=True):
        assert wanted in reason
