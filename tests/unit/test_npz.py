"""Arrays out of .npz files are numpy's, and a damaged file is named."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from latentplan.data import npz
from latentplan.errors import SourceError

DTYPES = st.sampled_from(["u1", "i4", ">i2", "f4", "f8", "?", "U3"]).map(np.dtype)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), save=st.sampled_from([np.savez, np.savez_compressed]))
def test_gives_what_numpy_gives(tmp_path: Path, data: st.DataObject, save: Any) -> None:
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0)
    values = {
        name: data.draw(arrays.arrays(data.draw(DTYPES), data.draw(shapes))) for name in "ab"
    }
    values["c"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    save(tmp_path / "a.npz", **values)
    assert sorted(npz.names(tmp_path / "a.npz")) == ["a", "b", "c"]
    found = npz.read(tmp_path / "a.npz", ["c", "a"])
    assert list(found) == ["c", "a"]
    for name, value in found.items():
        np.testing.assert_array_equal(value, values[name], strict=True)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
def test_damage_never_gives_other_numbers(
    tmp_path: Path, place: float, byte: int, cut: bool
) -> None:
    file, wanted = tmp_path / "a.npz", np.random.default_rng(0).integers(0, 9, (20, 20))
    np.savez_compressed(file, wanted=wanted)
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    content[at] = byte
    file.write_bytes(bytes(content[:at] if cut else content))
    try:
        found = npz.read(file, ["wanted"])["wanted"]
    except SourceError as e:
        assert str(e).startswith(f"{file}: ") and "\n" not in str(e)
    else:
        np.testing.assert_array_equal(found, wanted)


def test_what_is_not_there_or_could_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with pytest.raises(SourceError, match=r"a\.npz: is missing"):
        npz.read(file, ["x"])
    np.savez(file, x=np.array([{}], object))
    with pytest.raises(SourceError, match=r"x cannot be read \(an array of objects"):
        npz.read(file, ["x"])
    with pytest.raises(SourceError, match="has no array 'y'; it has x"):
        npz.read(file, ["y"])
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as content:
        content.writestr("x.npy", b"x" * 100)
    with pytest.raises(SourceError, match="unknown compression"):
        npz.read(file, ["x"])
