"""latentplan: learn a latent dynamics model from robot experience and plan with it.

`latentplan.load(run)` gives a planner to embed in a control loop: `goal()`, `act()`, `reset()`.
Importing it also makes the tasks known to Gymnasium: `gymnasium.make("latentplan/Rope-v0")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latentplan.sim import gymnasium_ids

if TYPE_CHECKING:
    from latentplan.api.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

gymnasium_ids.announce()


def __getattr__(name: str) -> Any:
    """Import `load` when it is first asked for: it needs torch, `import latentplan` must not."""
    if name == "load":
        from latentplan.api.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
