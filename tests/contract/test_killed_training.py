"""`kill -9` at any moment of the training of any registered learner, then resume: the same run."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed import driven
from trainings import every_name, settings, small, stored, tensors


@pytest.mark.slow
@every_name
def test_killed_at_any_file_and_resumed_it_is_the_same_run(
    kind: str, name: str, tmp_path: Path
) -> None:
    data, whole, cut = stored(tmp_path / "data.zarr"), tmp_path / "whole", tmp_path / "cut"
    overrides = [*settings(kind, name), *small(name)]
    assert driven(name, data, whole, moments=["end"], overrides=overrides)[0][0] == 0
    moments = [f"replace:{n}" for n in (1, -2, 3, -5, 7, -9, 12)]
    found = driven(name, data, cut, moments=[*moments, "end"], overrides=overrides)
    codes = [code for code, _ in found]
    kills = codes.count(-9)
    assert kills >= 4 and set(codes[:kills]) == {-9} and set(codes[kills:]) == {0}
    assert tensors(cut) == tensors(whole)
