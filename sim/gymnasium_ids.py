"""The tasks as Gymnasium ids: `gymnasium.make("latentplan/Rope-v0", task="straighten")`.

Keyword arguments are fields of the task's Config. `import latentplan` announces the ids but does
not import Gymnasium, which would take ten times as long.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

IDS = {
    "latentplan/Rope-v0": "rope",
    "latentplan/Cloth-v0": "cloth",
    "latentplan/Tabletop-v0": "tabletop",
}
LENGTHS = {"rope": 20, "cloth": 20, "tabletop": 64}  # actions until an episode is truncated


def announce() -> None:
    """Register the ids with Gymnasium: now, or as soon as it is imported."""
    if "gymnasium" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _WhenImported())


def register() -> None:
    """Register the ids with Gymnasium, and import it."""
    from gymnasium.envs.registration import register

    for name, env in IDS.items():
        where = f"{__name__}:make"
        register(name, where, max_episode_steps=LENGTHS[env], kwargs={"env": env})


def make(env: str, render_mode: str | None = "rgb_array", **settings: Any) -> Any:
    """Return the env of this name with these settings.

    Raises ConfigError if a setting is not in the env's Config or out of its range, and for a
    `render_mode` other than `rgb_array` or None.
    """
    from latentplan import config, registry
    from latentplan.errors import ConfigError

    task = registry.get("env", env)
    if render_mode not in (None, *task.metadata["render_modes"]):
        raise ConfigError(f"render_mode: found {render_mode!r}, allowed are 'rgb_array' and None")
    made = task(config.from_values(task.Config, settings))
    made.render_mode = render_mode
    return made


class _WhenImported:
    """An import hook that registers the ids when Gymnasium is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return Gymnasium's spec with a loader that registers the ids, None for other modules."""
        if name != "gymnasium":
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec
