"""Files of a run folder that somebody damaged or wrote: one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentplan.errors import LatentplanError
from latentplan.training import curves, run_folder

WHOLE = "model: {name: cfm}\ntraining: {steps: 3}\nseed: 0\ndata: {path: a.zarr}\n"


@pytest.mark.parametrize(
    "before, after",
    [
        ("seed: 0", "seed: x"),
        ("seed: 0", "seed: true"),
        ("seed: 0\n", ""),
        ("{steps: 3}", "{steps: many}"),
        ("{steps: 3}", "3"),
        ("{path: a.zarr}", "[a.zarr]"),
        ("{path: a.zarr}", "{path: 3}"),
    ],
)
def test_settings_of_a_run_are_whole(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "config.yaml"
    with pytest.raises(LatentplanError, match=r"has no config\.yaml; give the folder of a run"):
        run_folder.written(tmp_path)
    file.write_text(WHOLE)
    assert run_folder.written(tmp_path)["training"] == {"steps": 3}
    assert before in WHOLE
    file.write_text(WHOLE.replace(before, after))
    with pytest.raises(LatentplanError, match=r"config\.yaml: does not hold a run's (seed|data)"):
        run_folder.written(tmp_path)


@pytest.mark.parametrize("line", ["3", "[1]", '{"loss": 2.0}', '{"step": "1"}', '{"step": null}'])
def test_a_damaged_point_of_the_curves_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text(f'{{"step": 1, "loss": NaN}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(LatentplanError, match=r"log\.jsonl: line 2 is damaged"):
        curves.read(file)
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(LatentplanError, match=r"log\.jsonl: line 2 is damaged"):
        curves.read(file)
    file.write_bytes(b'{"step": 1}\n\xff')
    with pytest.raises(LatentplanError, match="is not UTF-8"):
        curves.read(file)
    file.write_text('{"step": 1}\n{"st')  # cut off by a kill
    assert curves.read(file) == [{"step": 1}]
