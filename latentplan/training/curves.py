"""The curves of a run: log.jsonl, one point a line, and TensorBoard events."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard.writer import SummaryWriter

from latentplan import foreign
from latentplan.errors import CheckpointError
from latentplan.files import replacing


class Curves:
    """The curves of a run folder, a context manager.

    Lines hold no times, so that a resumed run writes the very file of an undisturbed one.
    """

    def __init__(self, run: Path, *, start: int) -> None:
        """Open the curves of `run` after step `start`; later points are dropped."""
        path = run / "log.jsonl"
        kept = [line for line in read(path) if line["step"] <= start]
        with replacing(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._log = path.open("a")
        _wait_for_a_later_name(run / "tensorboard")
        self._events = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write one point of each curve."""
        self._log.write(json.dumps({"step": step, **values}) + "\n")
        self._log.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def flush(self) -> None:
        """Return when every point is on the disk."""
        self._events.flush()
        os.fsync(self._log.fileno())

    def __enter__(self) -> Curves:
        """Return the curves."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._log.close()
        self._events.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until an event file that is made now sorts after those in the folder: at most a second.

    TensorBoard reads them by name, which is the second and then the number of the process; read in
    another order, a resumed run would lose the points after its restart.
    """
    names = (file.name.split(".") for file in folder.glob("events.out.tfevents.*"))
    seconds = [int(name[3]) for name in names if name[3].isdigit()]
    if seconds:
        time.sleep(min(1.0, max(0.0, max(seconds) + 1 - time.time())))


def read(path: Path) -> list[dict[str, float]]:
    """Return the points of a log.jsonl; a last line that a kill cut off is left out.

    Raises CheckpointError if another line is damaged.
    """
    if not path.exists():
        return []
    lines = foreign.text(path, error=CheckpointError).splitlines()
    points: list[dict[str, float]] = []
    for number, line in enumerate(lines, 1):
        try:
            point = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            point = None
        if not isinstance(point, dict) or not all(
            type(point.get(name)) in (int, float) for name in ("step", *point)
        ):
            raise CheckpointError(f"{path}: line {number} is damaged; delete it")
        points.append(point)
    return points
