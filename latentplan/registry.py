"""Registered names of components, and the objects that they refer to.

To add a component: one file, one line here (or an entry point `latentplan.<kind>` in another
package), and a preset if useful. Objects are imported on first use.
"""

from __future__ import annotations

import os
import sys
from functools import cache, reduce
from importlib import import_module, invalidate_caches
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from latentplan import contracts
from latentplan.errors import UnknownName, unknown
from latentplan.types import Part, Spec

BUILT_IN: dict[str, dict[str, str]] = {
    "env": {
        "calvin": "latentplan.sim.calvin.env:Calvin",
        "cloth": "latentplan.sim.deformable.cloth:Cloth",
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
        "rope": "latentplan.sim.deformable.rope:Rope",
        "tabletop": "latentplan.sim.tabletop.env:Tabletop",
    },
    "model": {
        "autoencoder": "latentplan.models.autoencoder:Autoencoder",
        "calibrated": "latentplan.models.calibrated:Calibrated",
        "cfm": "latentplan.models.cfm:CFM",
        "elastic": "latentplan.models.elastic:Elastic",
        "jepa": "latentplan.models.jepa:JEPA",
        "joint": "latentplan.models.joint:Joint",
        "keypoints": "latentplan.models.keypoints:Keypoints",
        "lwm": "latentplan.models.lwm.lwm:LWM",
        "multistep_inverse": "latentplan.models.multistep.multistep_inverse:MultistepInverse",
        "pixel": "latentplan.models.pixel:Pixel",
        "planet": "latentplan.models.planet:PlaNet",
        "povt": "latentplan.models.povt.povt:POVT",
        "teco": "latentplan.models.teco.teco:TECO",
        "videogpt": "latentplan.models.videogpt.videogpt:VideoGPT",
        "videoworld": "latentplan.models.videoworld.videoworld:VideoWorld",
    },
    "tokenizer": {
        "elastictok": "latentplan.tokenizers.elastictok:ElasticTok",
        "lqae": "latentplan.tokenizers.lqae.lqae:LQAE",
        "selftok": "latentplan.tokenizers.selftok.selftok:Selftok",
        "video_vqvae": "latentplan.tokenizers.video_vqvae:VideoVQVAE",
        "vqvae": "latentplan.tokenizers.vqvae:VQVAE",
    },
    "planner": {
        "beam": "latentplan.planning.beam:Beam",
        "categorical": "latentplan.planning.categorical:Categorical",
        "cem": "latentplan.planning.cem:CEM",
        "gradient": "latentplan.planning.gradient:Gradient",
        "hybrid": "latentplan.planning.hybrid:Hybrid",
        "icem": "latentplan.planning.icem:ICEM",
        "mppi": "latentplan.planning.mppi:MPPI",
        "predictive": "latentplan.planning.predictive:PredictiveSampling",
        "shooting": "latentplan.planning.shooting:Shooting",
    },
    "objective": {
        "goal": "latentplan.objectives.goal:GoalDistance",
        "pessimistic": "latentplan.objectives.pessimistic:Pessimistic",
        "subgoal": "latentplan.objectives.subgoal:Subgoal",
        "text": "latentplan.objectives.text:TextGoal",
    },
    "evaluation": {
        "goals": "latentplan.evaluation.goals:Goals",
        "calvin-mtlc": "latentplan.evaluation.calvin.evaluations:SingleTasks",
        "calvin-lh": "latentplan.evaluation.calvin.evaluations:Chains",
    },
    "policy": {
        "generative": "latentplan.planning.generative:GenerativePolicy",
        "mpc": "latentplan.planning.mpc:MPC",
        "random": "latentplan.exploration.picks:RandomPick",
        "box": "latentplan.exploration.box:Box",
        "expert": "latentplan.exploration.expert:Expert",
        "oracle": "latentplan.exploration.oracle:Oracle",
        "noisy_oracle": "latentplan.exploration.oracle:NoisyOracle",
        "mixture": "latentplan.exploration.oracle:Mixture",
        "noop": "latentplan.exploration.noop:Noop",
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
    """Return the targets `MODULE:CLASS` of a kind by name, including those of plug-ins.

    A package that is installed while the process runs may not be found until the next.
    """
    return _plugins(kind) | BUILT_IN[kind]


@cache
def _plugins(kind: str) -> dict[str, str]:
    """Return the targets of other packages; reading those of all packages takes some 10 ms."""
    return {e.name: e.value for e in entry_points(group=f"latentplan.{kind}")}


def get(kind: str, name: str) -> Any:
    """Import and return the object registered as `name`.

    Raises UnknownName if the name is not registered, and ContractError if the class does not fit
    its kind.
    """
    known = names(kind)
    if name not in known:
        raise unknown(kind, name, known)
    return _load(kind, name, known[name])


def load(kind: str, target: str) -> Any:
    """Import and return the class `MODULE:CLASS`, which need not be registered.

    A module that is not installed is searched in the current folder. Raises UnknownName if there is
    no such module or class, and ContractError as `get` does.
    """
    module, _, attribute = target.partition(":")
    if find(module) is None and Path(f"{module.replace('.', '/')}.py").is_file():
        sys.path.append(os.getcwd())
        invalidate_caches()
    if find(module) is None:
        raise UnknownName(
            f"{kind} {target!r}: no module {module!r} is installed or in this folder; write "
            "MODULE:CLASS"
        )
    return _load(kind, target, target)


def find(module: str) -> ModuleSpec | None:
    """Return the spec of a module without importing it (only its packages); None if not found."""
    if not all(module.split(".")):  # a relative name
        return None
    try:
        return find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None


def _load(kind: str, name: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        made = reduce(getattr, attribute.split("."), import_module(module))
    except AttributeError:
        raise UnknownName(
            f"{kind} {name!r}: module {module!r} has no {attribute!r}; write MODULE:CLASS"
        ) from None
    contracts.check_class(kind, name, made)
    return made


def build(part: Part, spec: Spec) -> Any:
    """Return a new network of a part's class for `spec`; UnknownName if it is not registered."""
    return get(part.kind, part.name)(spec, part.config)
