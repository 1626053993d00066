"""Where a command's results go."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from latentplan.errors import LatentplanError


def folder(name: str, out: str | Path | None) -> Path:
    """Return the folder `out`, made; without one a new one, runs/NAME-1, runs/NAME-2, ...

    Raises LatentplanError where it cannot be made.
    """
    candidates = (Path("runs") / f"{name}-{n}" for n in count(1))
    found = Path(out) if out is not None else next(c for c in candidates if not c.exists())
    try:
        found.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise LatentplanError(f"--out {found}: cannot be made ({e.strerror})") from None
    return found
