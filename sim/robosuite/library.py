"""The import of robosuite: quiet, after the choice of OpenGL, and patched if necessary."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from latentplan.errors import MissingDependency
from latentplan.sim.rendering import mujoco_renderer  # noqa: F401  (sets MUJOCO_GL, which robosuite reads)


def load(name: str) -> Any:
    """Return the package robosuite for the env `name`.

    Raises MissingDependency, with the install command, if it or a library of it is missing.
    """
    logging.getLogger("robosuite_logs").addFilter(_errors)
    try:
        import robosuite
    except ModuleNotFoundError as e:
        raise MissingDependency(
            f'env {name!r} needs {e.name}: pip install "latentplan[robosuite]"'
        ) from None
    except ImportError as e:  # one of OpenCV's shared libraries
        raise MissingDependency(
            f"env {name!r}: robosuite does not load ({e}); type: apt-get install -y libgl1 "
            "libglib2.0-0 libxcb1"
        ) from None
    _mend_sawyer()
    return robosuite


def _errors(record: logging.LogRecord) -> bool:
    """Return whether a record of robosuite's log is an error."""
    return record.levelno >= logging.ERROR


@cache
def _mend_sawyer() -> None:
    """Make MuJoCo 3.9 accept robosuite 1.5.1's Sawyer, whose head has an open mesh."""
    from robosuite.models.robots import Sawyer

    make = Sawyer.__init__

    def mended(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        for mesh in self.asset.iter("mesh"):  # only visual: bodies have explicit inertia
            if "head" in mesh.get("name"):
                mesh.set("inertia", "shell")

    Sawyer.__init__ = mended
