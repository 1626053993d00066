"""What every policy promises: bounds, seeds, and goals that are kept.

In a small env whose actions point into an image. A policy that plans is given a linear model of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latentplan import contracts
from latentplan.conformance.linear import Linear
from latentplan.conformance.suite import NotApplicable, Subject, difference, require
from latentplan.conformance.table import Table
from latentplan.planning.mpc import MPC
from latentplan.protocols import EnvPolicy, GoalChoosingPolicy, Policy
from latentplan.types import Array, Goal

LENGTH = 6  # actions of an episode
SEEDS = 3  # episodes


def check_bounds(subject: Subject) -> None:
    """Check that actions are float32, of the spec's shape, finite and inside the bounds."""
    policy, env = built(subject), Table()
    spec = env.data_spec.action
    for seed in range(SEEDS):
        for action in episode(policy, env, seed)[1]:
            found = isinstance(action, np.ndarray) and action.dtype == np.float32
            require(found, f"an action is {type(action).__name__} {getattr(action, 'dtype', '')}")
            inside = bool(((action >= spec.low) & (action <= spec.high)).all())
            require(inside, f"found {action.tolist()}, out of bounds")


def check_seeds(subject: Subject, *, random: bool = False) -> None:
    """Check that an episode depends on the seed alone, whatever ran before.

    With `random`, another seed must give another one as well.
    """
    policy, env = built(subject), Table()
    goal, first = episode(policy, env, 1)
    other = episode(policy, env, 2)[1]
    again_goal, again = episode(policy, env, 1)
    require(np.array_equal(first, again), "other actions in a second episode of seed 1")
    fresh = episode(built(subject), Table(), 1)[1]
    require(np.array_equal(first, fresh), "other actions of a new policy, of seed 1")
    if random:
        require(not np.array_equal(first, other), "the same actions of seeds 1 and 2")
    require((goal is None) == (again_goal is None), "a goal in one episode of seed 1 alone")
    if goal is not None and again_goal is not None:
        differ = difference(dict(again_goal.observation or {}), dict(goal.observation or {}))
        require(not differ, f"{differ} of the goal differs in a second episode of seed 1")


def check_kinds_of_seed(subject: Subject) -> None:
    """Check that a seed may be an int, a numpy SeedSequence or a numpy Generator."""
    policy, env = built(subject), Table()
    for make in (int, np.random.SeedSequence, np.random.default_rng):
        first, again = (episode(policy, env, make(5))[1] for _ in range(2))
        same = np.array_equal(first, again)
        require(same, f"other actions in a second episode of {make.__name__}(5)")


def check_goal_chosen(subject: Subject) -> None:
    """Check that a goal that the policy chooses is an observation of the env."""
    policy, env = built(subject), Table()
    if not isinstance(policy, GoalChoosingPolicy):
        raise NotApplicable("chooses no goals")
    for seed in range(SEEDS):
        goal = episode(policy, env, seed)[0]
        if goal is None:  # not in every episode
            continue
        keys, need = sorted(goal.observation or {}), sorted(env.data_spec.observation)
        require(keys == need, f"keys are {keys}, of the env {need}")


def check_goal_given(subject: Subject) -> None:
    """Check that a goal that is given is not replaced by one that the policy chooses."""
    policy, env = built(subject), Table()
    if not isinstance(policy, GoalChoosingPolicy):
        raise NotApplicable("chooses no goals")
    _attach(policy, env)
    for seed in range(SEEDS + 1):
        policy.reset(Goal(observation=env.goal(seed=3)), seed=seed)
        require(policy.goal_chosen is None, "goal_chosen is not None")


def built(subject: Subject) -> Policy:
    """Return a new policy for the suite's env."""
    spec = Table().data_spec
    if not (isinstance(subject.make, type) and issubclass(subject.make, MPC)):
        policy: Policy = subject.build(spec)
        return policy
    planning = subject.make(Linear(spec), config=subject.config)
    contracts.check_object(subject.kind, subject.name, planning)
    return planning


def episode(policy: Policy, env: Table, seed: Any) -> tuple[Goal | None, Array]:
    """Return the goal that the policy chose, if it did, and its actions (L, A).

    A policy that chooses no goals is given one. The env's episode is always the same.
    """
    _attach(policy, env)
    chosen = None
    if isinstance(policy, GoalChoosingPolicy):
        policy.reset(seed=seed)
        chosen = policy.goal_chosen
    else:
        policy.reset(Goal(observation=env.goal(seed=7)), seed=seed)
    observation, _ = env.reset(seed=4)
    actions = []
    for _ in range(LENGTH):
        actions.append(policy.act(observation))
        shape = np.shape(actions[-1])
        require(shape == (env.data_spec.action.size,), f"the shape of an action is {shape}")
        # What is out of bounds is found by a check of its own.
        observation = env.step(np.clip(np.nan_to_num(actions[-1]), -1, 1)).observation
    return chosen, np.stack(actions)


def _attach(policy: Policy, env: Table) -> None:
    if isinstance(policy, EnvPolicy):
        policy.attach(env)
