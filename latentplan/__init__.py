"""latentplan: learn a latent dynamics model from robot experience and plan with it.

    data = latentplan.collect("rope", out="rope.zarr", episodes=500)
    run = latentplan.train("cfm", data="rope.zarr", run="runs/rope")
    found = latentplan.evaluate("runs/rope", episodes=8)

`latentplan.load(run)` returns a planner for a control loop: `goal()`, `act()`, `reset()`;
`latentplan.connect()` an arm. Importing the package also registers its tasks with Gymnasium:
`gymnasium.make("latentplan/Rope-v0")`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latentplan.sim import gymnasium_ids

if TYPE_CHECKING:
    from latentplan.api.collect import collect
    from latentplan.api.evaluate import evaluate
    from latentplan.api.evaluate_offline import evaluate_offline
    from latentplan.api.goals import goal_of
    from latentplan.api.improve import improve
    from latentplan.api.join import join
    from latentplan.api.load import load
    from latentplan.api.robot import connect
    from latentplan.api.train import train

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "collect",
    "connect",
    "evaluate",
    "evaluate_offline",
    "goal_of",
    "improve",
    "join",
    "load",
    "train",
]

MODULES = {  # of api, imported when first asked for: they need numpy or torch
    "collect": "collect",
    "connect": "robot",
    "evaluate": "evaluate",
    "evaluate_offline": "evaluate_offline",
    "goal_of": "goals",
    "improve": "improve",
    "join": "join",
    "load": "load",
    "train": "train",
}

gymnasium_ids.announce()


def __getattr__(name: str) -> Any:
    """Import a function of the library when it is first asked for."""
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"latentplan.api.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return all names, those that are not imported yet included."""
    return sorted({*globals(), *MODULES})
