"""Names that commands and configs use, each with the object it stands for.

To add a system: one file, one line here (or an entry point `latentplan.<kind>` in another
package), and one preset. Objects are imported when first asked for.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from latentplan.errors import unknown
from latentplan.types import Part, Spec

BUILT_IN: dict[str, dict[str, str]] = {
    "env": {
        "calvin": "latentplan.sim.calvin.env:Calvin",
        "cloth": "latentplan.sim.cloth:Cloth",
        "rlbench": "latentplan.sim.rlbench.env:RLBench",
        "robosuite/Door": "latentplan.sim.robosuite.tasks:Door",
        "robosuite/Lift": "latentplan.sim.robosuite.tasks:Lift",
        "robosuite/NutAssembly": "latentplan.sim.robosuite.tasks:NutAssembly",
        "robosuite/NutAssemblyRound": "latentplan.sim.robosuite.tasks:NutAssemblyRound",
        "robosuite/NutAssemblySquare": "latentplan.sim.robosuite.tasks:NutAssemblySquare",
        "robosuite/PickPlace": "latentplan.sim.robosuite.tasks:PickPlace",
        "robosuite/PickPlaceCan": "latentplan.sim.robosuite.tasks:PickPlaceCan",
        "robosuite/Stack": "latentplan.sim.robosuite.tasks:Stack",
        "robosuite/Wipe": "latentplan.sim.robosuite.tasks:Wipe",
        "rope": "latentplan.sim.rope:Rope",
        "tabletop": "latentplan.sim.tabletop.env:Tabletop",
    },
    "model": {
        "cfm": "latentplan.models.cfm:CFM",
        "videoworld": "latentplan.models.videoworld.videoworld:VideoWorld",
    },
    "tokenizer": {"vqvae": "latentplan.tokenizers.vqvae:VQVAE"},
    "planner": {
        "categorical": "latentplan.planning.categorical:Categorical",
        "cem": "latentplan.planning.cem:CEM",
        "generate": "latentplan.planning.generate:Generate",
        "gradient": "latentplan.planning.gradient:Gradient",
        "hybrid": "latentplan.planning.hybrid:Hybrid",
        "icem": "latentplan.planning.icem:ICEM",
        "mppi": "latentplan.planning.mppi:MPPI",
        "predictive": "latentplan.planning.predictive:PredictiveSampling",
        "shooting": "latentplan.planning.shooting:Shooting",
    },
    "objective": {
        "goal": "latentplan.objectives.goal:GoalDistance",
        "pessimistic": "latentplan.objectives.ensemble:Pessimistic",
    },
    "explorer": {
        "random": "latentplan.exploration.picks:RandomPick",
        "box": "latentplan.exploration.box:Box",
        "expert": "latentplan.exploration.expert:Expert",
        "oracle": "latentplan.exploration.scripted:Oracle",
        "noisy_oracle": "latentplan.exploration.scripted:NoisyOracle",
        "mixture": "latentplan.exploration.scripted:Mixture",
    },
    "source": {
        "bag": "latentplan.data.sources.bag:Bag",
        "calvin": "latentplan.data.sources.calvin:Calvin",
        "lerobot": "latentplan.data.sources.lerobot:Lerobot",
        "minari": "latentplan.data.sources.minari:Minari",
        "rlbench": "latentplan.data.sources.rlbench:Rlbench",
        "robomimic": "latentplan.data.sources.robomimic:Robomimic",
    },
    "backend": {
        "lerobot": "latentplan.real_robot.backends.lerobot:LerobotDriver",
        "ros1": "latentplan.real_robot.backends.ros1:Ros1Driver",
        "ros2": "latentplan.real_robot.backends.ros2:Ros2Driver",
        "rosbridge": "latentplan.real_robot.backends.rosbridge:RosbridgeDriver",
        "sim": "latentplan.real_robot.backends.sim:SimulatedDriver",
    },
    "robot": {"arm": "latentplan.robots.description:Arm"},
}


def names(kind: str) -> dict[str, str]:
    """Return every known name of a kind (`env`, `model`, ...), plug-ins included."""
    found = {e.name: e.value for e in entry_points(group=f"latentplan.{kind}")}
    return found | BUILT_IN[kind]


def get(kind: str, name: str) -> Any:
    """Import and return what `name` stands for; UnknownName where nothing does."""
    known = names(kind)
    if name not in known:
        raise unknown(kind, name, known)
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)


def build(part: Part, spec: Spec) -> Any:
    """Return a new network of a part's class for `spec`; UnknownName if nothing has its name."""
    return get(part.kind, part.name)(spec, part.config)
