"""Checks of every policy: bounds, seeds and goals.

They use a small env whose actions are picks in an image. A policy that plans has a linear model.
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
    """Check that actions are float32, of the spec's shape, finite and within their bounds."""
    policy, env = built(subject), Table()
    spec = env.data_spec.action
    for seed in range(SEEDS):
        for action in episode(policy, env, seed)[1]:
            found = isinstance(action, np.ndarray) and action.dtype == np.float32
            require(found, f"an action is {type(action).__name__} {getattr(action, 'dtype', '')}")
            inside = bool(((action >= spec.low) & (action <= spec.high)).all())
            require(inside, f"found {action.tolist()}, out of bounds")


def check_seeds(subject: Subject, *, random: bool = False) -> None:
    """Check that an episode depends on its seed and not on earlier episodes.

    With `random`, different seeds must also give different episodes.
    """
    policy, env = built(subject), Table()
    goal, first = episode(policy, env, 1)
    other = episode(policy, env, 2)[1]
    again_goal, again = episode(policy, env, 1)
    require(np.array_equal(first, again), "actions differ in a second episode of seed 1")
    fresh = episode(built(subject), Table(), 1)[1]
    require(np.array_equal(first, fresh), "actions of a new policy with seed 1 differ")
    if random:
        require(not np.array_equal(first, other), "the same actions of seeds 1 and 2")
    require((goal is None) == (again_goal is None), "only one of two episodes of seed 1 has a goal")
    if goal is not None and again_goal is not None:
        differ = difference(dict(again_goal.observation or {}), dict(goal.observation or {}))
        require(not differ, f"{differ} of the goal differs in a second episode of seed 1")


def check_kinds_of_seed(subject: Subject) -> None:
    """Check that a seed may be an int, a numpy SeedSequence or a numpy Generator."""
    policy, env = built(subject), Table()
    for make in (int, np.random.SeedSequence, np.random.default_rng):
        first, again = (episode(policy, env, make(5))[1] for _ in range(2))
        same = np.array_equal(first, again)
        require(same, f"actions differ in a second episode of {make.__name__}(5)")


def check_goal_chosen(subject: Subject) -> None:
    """Check that a goal chosen by the policy is an observation of the env."""
    policy, env = built(subject), Table()
    if not isinstance(policy, GoalChoosingPolicy):
        raise NotApplicable("does not choose goals")
    for seed in range(SEEDS):
        goal = episode(policy, env, seed)[0]
        if goal is None:  # a policy may choose one in some episodes only
            continue
        keys, need = sorted(goal.observation or {}), sorted(env.data_spec.observation)
        require(keys == need, f"keys are {keys}, of the env {need}")


def check_goal_given(subject: Subject) -> None:
    """Check that the policy does not replace the goal of reset."""
    policy, env = built(subject), Table()
    if not isinstance(policy, GoalChoosingPolicy):
        raise NotApplicable("does not choose goals")
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
    """Return the goal that the policy chose, if any, and its actions (L, A).

    A policy that does not choose goals has one of the env. The env's episode is always the same.
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
        # `check_bounds` reports what is clipped here.
        observation = env.step(np.clip(np.nan_to_num(actions[-1]), -1, 1)).observation
    return chosen, np.stack(actions)


def _attach(policy: Policy, env: Table) -> None:
    if isinstance(policy, EnvPolicy):
        policy.attach(env)
