"""Who attempts a trial: the planner, and the controls that say what its figures are worth."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from scipy.ndimage import distance_transform_edt

from latentplan import registry
from latentplan.data.images import pixel_to_action, segment
from latentplan.errors import ShapeError
from latentplan.protocols import Env, Explorer
from latentplan.types import Array, Observation, Spec


class Agent(Protocol):
    """What is evaluated, for instance a `planning.mpc.MPC`."""

    def reset(self, *, seed: int) -> None:
        """Forget the episode; what is drawn next depends on `seed` alone."""

    def goal(self, observation: Observation, *, text: str = "") -> Any:
        """Take the observation to reach, and the task's name or instruction if it has one."""

    def act(self, observation: Observation) -> Array:
        """Return an action (A,) inside the bounds."""

    def evaluate(self, observation: Observation, actions: Array) -> Any:
        """Return the predicted cost (K,) of each single action (K, A); low is good."""


class Contender(Protocol):
    """One way to attempt a trial; it is given all keys, privileged ones too."""

    def begin(self, goal: Observation, *, task: str = "") -> None:
        """Start an episode towards `goal`."""

    def act(self, observation: Observation) -> Array:
        """Return an action (A,)."""


def public(observation: Observation, spec: Spec) -> Observation:
    """Return what a real robot's sensors would give: no simulator truth."""
    return {k: v for k, v in observation.items() if k not in spec.privileged}


class Planned:
    """The planner under test; privileged keys never reach it."""

    def __init__(self, agent: Agent, spec: Spec, *, seed: int) -> None:
        """Take the agent, the spec that says which keys are privileged, the episode's seed."""
        self.agent, self.spec, self.seed = agent, spec, seed

    def begin(self, goal: Observation, *, task: str = "") -> None:
        """Forget the last episode and take the goal."""
        self.agent.reset(seed=self.seed)
        self.agent.goal(public(goal, self.spec), text=task)

    def act(self, observation: Observation) -> Array:
        """Return the planner's action."""
        return self.agent.act(public(observation, self.spec))

    def predict(self, observation: Observation, actions: Array) -> Array:
        """Return the cost (K,) that the planner predicts for each action (K, A)."""
        cost = np.asarray(self.agent.evaluate(public(observation, self.spec), actions), np.float64)
        if cost.shape != (len(actions),):
            raise ShapeError(
                f"Agent.evaluate: found shape {cost.shape}, need (K={len(actions)},) costs"
            )
        return cost


class Random:
    """Control: the actions that collection would have taken."""

    def __init__(self, spec: Spec, rng: np.random.Generator) -> None:
        """Take the spec of the actions and the source of randomness."""
        self.spec, self.rng = spec, rng
        explorer = "box" if spec.pick is None else "random"
        self.explorer: Explorer = registry.get("explorer", explorer)(spec)

    def begin(self, goal: Observation, *, task: str = "") -> None:
        """Do nothing: a random agent has no goal."""

    def act(self, observation: Observation) -> Array:
        """Return a random action."""
        return self.explorer.act(public(observation, self.spec), self.rng)


class Noop:
    """Control: what happens when nobody does anything."""

    def __init__(self, spec: Spec) -> None:
        """Take the spec of the actions."""
        self.spec = spec

    def begin(self, goal: Observation, *, task: str = "") -> None:
        """Do nothing: there is no goal."""

    def act(self, observation: Observation) -> Array:
        """Return the zero action; where actions pick, at the pixel farthest from the object."""
        low, high = np.array(self.spec.action.low), np.array(self.spec.action.high)
        action = np.clip(np.zeros(self.spec.action.size), low, high)
        pick = self.spec.pick
        if pick is not None:
            thing = segment(observation[pick.image], pick)
            away = distance_transform_edt(~thing)  # h w, pixels
            row, column = np.unravel_index(away.argmax(), away.shape)
            height, width = away.shape
            action[:2] = pixel_to_action(row, column, height=height, width=width)
        return action.astype(np.float32)


class Oracle:
    """Control: the env's scripted expert, which sees the simulator's truth."""

    def __init__(self, env: Env) -> None:
        """Take the env whose expert acts."""
        self.env = env

    def begin(self, goal: Observation, *, task: str = "") -> None:
        """Take the goal, privileged keys included."""
        self.target = goal

    def act(self, observation: Observation) -> Array:
        """Return the expert's action."""
        return self.env.oracle(observation, self.target)
