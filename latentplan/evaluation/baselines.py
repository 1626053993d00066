"""Baseline policies, and the observations that an evaluated policy may read."""

from __future__ import annotations

import numpy as np

from latentplan import registry
from latentplan.errors import ShapeError
from latentplan.protocols import CostPredictor, Env, EnvPolicy, Policy, PrivilegedPolicy
from latentplan.types import Array, Observation, Spec


def random_policy(spec: Spec) -> Policy:
    """Return the random policy that collection uses by default."""
    policy: Policy = registry.get("policy", "box" if spec.pick is None else "random")(spec)
    return policy


def baselines(env: Env) -> dict[str, Policy]:
    """Return the baselines by name: random actions, no motion, and the env's scripted expert."""
    spec = env.data_spec
    oracle = registry.get("policy", "oracle")(spec)
    oracle.attach(env)
    return {
        "random": random_policy(spec),
        "noop": registry.get("policy", "noop")(spec),
        "oracle": oracle,
    }


def visible(policy: Policy, observation: Observation, spec: Spec) -> Observation:
    """Return the keys of an observation that a policy may read.

    Only a policy of the env itself, such as its expert, may read all privileged keys, and a
    PrivilegedPolicy those that it declares.
    """
    if isinstance(policy, EnvPolicy):
        return observation
    hidden = {*spec.privileged} - {*declared(policy)}
    return {k: v for k, v in observation.items() if k not in hidden}


def declared(policy: object) -> tuple[str, ...]:
    """Return the privileged keys that a policy declares to read."""
    return policy.privileged if isinstance(policy, PrivilegedPolicy) else ()


def predicted_cost(
    policy: CostPredictor, observation: Observation, actions: Array, spec: Spec
) -> Array:
    """Return the cost (K,) that a policy predicts for actions (K, A)."""
    hidden = {*spec.privileged} - {*declared(policy)}
    seen = {k: v for k, v in observation.items() if k not in hidden}
    cost = np.asarray(policy.evaluate(seen, actions), np.float64)
    if cost.shape != (len(actions),):
        raise ShapeError(
            f"CostPredictor.evaluate: found shape {cost.shape}, need (K={len(actions)},) costs"
        )
    return cost
