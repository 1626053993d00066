"""Checks of every env: its spec, seeds, exact snapshots and reachable goals."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import numpy as np

from latentplan.conformance.suite import (
    Broken,
    NotApplicable,
    Subject,
    difference,
    refuses,
    require,
)
from latentplan.errors import ConfigError, ShapeError
from latentplan.protocols import (
    AdaptableEnv,
    Env,
    ExpertEnv,
    GoalSampler,
    HasEpisodeLength,
    HasSuccessThreshold,
    RenderedEnv,
)
from latentplan.types import Array, Observation, Spec

LENGTH = 20  # actions of an attempt, unless the env has an `episode_length`
ATTEMPTS = 3  # goals for the oracle
ROUNDING = 1e-6  # tolerance of an action's bounds
ZERO = 1e-6  # m; a fitted pose is not exact


def check_spec(subject: Subject) -> None:
    """Check that the spec is finite, survives a round trip through JSON and has the env's name."""
    with built(subject) as env:
        spec = env.data_spec
        require(isinstance(spec, Spec), f"data_spec is a {type(spec).__name__}, need types.Spec")
        require(Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec, "JSON changes it")
        low, high = np.array(spec.action.low), np.array(spec.action.high)
        require(low.shape == high.shape and low.ndim == 1, f"bounds are {low} and {high}")
        finite = bool(np.isfinite(low).all() and np.isfinite(high).all())
        require(finite and bool((low < high).all()), f"bounds are {low} and {high}")
        strange = set(spec.privileged) - set(spec.observation)
        require(not strange, f"privileged keys {sorted(strange)} are not observations")
        require(len(spec.observation) > 0, "there are no observations")
        named = ":" in subject.name or spec.env == subject.name
        require(named, f"data_spec.env is {spec.env!r}, its registered name {subject.name!r}")


def check_observations(subject: Subject) -> None:
    """Check that observations of reset and step have the keys, shapes and dtypes of the spec."""
    with built(subject) as env:
        found, info = env.reset(seed=3)
        _fits(env, found, "reset")
        for key in ("text", "task"):
            if key in info:
                require(isinstance(info[key], str), f"info[{key!r}] of reset is {info[key]!r}")
        for action in actions(env, 2):
            step = env.step(action)
            require(len(step) == 5, f"step returns {len(step)} values, need 5 (types.Step)")
            _fits(env, step[0], "step")
            require(bool(np.isfinite(float(step[1]))), f"reward is {step[1]}")
            for name, value in (("terminated", step[2]), ("truncated", step[3])):
                require(isinstance(value, bool | np.bool_), f"{name} is {value!r}, need a bool")
            require(isinstance(step[4], dict), f"info is {step[4]!r}, need a dict")


def check_seeds(subject: Subject) -> None:
    """Check that an episode depends on its seed and not on earlier episodes."""
    with built(subject) as env:
        first = _episode(env, seed=11)
        env.reset(seed=5)
        for action in actions(env, 3, seed=1):
            env.step(action)
        _same(_episode(env, seed=11), first, "after seed 11 twice")
        again = difference(env.reset(seed=12)[0], first[0])
        require(bool(again), "seeds 11 and 12 give the same start")


def check_snapshots(subject: Subject) -> None:
    """Check that a snapshot restores the state bit for bit."""
    with built(subject) as env:
        env.reset(seed=2)
        here = env.step(actions(env, 1)[0])[0]
        here = copy(here)
        state = env.snapshot()
        ahead = [copy(env.step(a)[0]) for a in actions(env, 4)]
        _same([env.restore(state)], [here], "in the result of restore")
        _same([copy(env.step(a)[0]) for a in actions(env, 4)], ahead, "after restore")
        env.reset(seed=9)
        env.restore(state)
        _same([env.step(actions(env, 1)[0])[0]], ahead[:1], "after another reset and restore")


def check_distance(subject: Subject) -> None:
    """Check that the distance is finite, not negative, 0 at the goal and equal to info's."""
    with built(subject) as env:
        goal = draw_goal(env, 100)
        at_goal = env.distance(goal, goal)
        require(abs(at_goal) < ZERO, f"distance(goal, goal) is {at_goal}")
        env.reset(seed=0, options={"goal": goal})
        for action in actions(env, 2):
            observation, _, _, _, info = env.step(action)
            found = env.distance(observation, goal)
            require(bool(np.isfinite(found)) and found >= 0, f"distance is {found}")
            reported = info.get("distance", found)
            require(reported == found, f"info['distance'] is {reported}, distance() is {found}")
            success = info.get("success", False)
            require(isinstance(success, bool | np.bool_), f"info['success'] is {success!r}")


def check_oracle(subject: Subject, *, by_chance: int | None = None) -> None:
    """Check that the oracle reaches goals, and more of them than random actions do.

    Random actions may reach `by_chance` of 3 goals. If the env has no success criterion, the last
    distances are compared.
    """
    with built(subject) as env:
        space = np.random.default_rng(0)
        reached, left = {"oracle": 0, "random": 0}, {"oracle": 0.0, "random": 0.0}
        judged = False
        for seed in range(ATTEMPTS):
            goal = draw_goal(env, 100 + seed)
            for name in reached:
                success, distance = _attempt(env, seed, goal, space if name == "random" else None)
                judged = judged or success is not None
                reached[name] += bool(success)
                left[name] += distance / ATTEMPTS
    if not judged:
        far, near = left["random"], left["oracle"]
        require(near < far, f"the oracle ends {near:.3g} m from the goal, random {far:.3g} m")
        return
    oracle, random = reached["oracle"], reached["random"]
    most = oracle - 1 if by_chance is None else by_chance
    found = f"of {ATTEMPTS} goals the oracle reaches {oracle}, random actions {random}"
    require(oracle >= ATTEMPTS - 1 and random <= most, found)


def check_goals(subject: Subject) -> None:
    """Check that goal() returns the same goal for a seed and does not change the episode."""
    with built(subject) as env:
        if not isinstance(env, GoalSampler):
            raise NotApplicable("has no goal(); observations of other resets are goals")
        env.reset(seed=1)
        env.step(actions(env, 1)[0])
        state = env.snapshot()
        ahead = copy(env.step(actions(env, 1)[0])[0])
        env.restore(state)
        goal = draw_goal(env, 7)
        _same([env.step(actions(env, 1)[0])[0]], [ahead], "in the episode after goal()")
        env.reset(seed=2)
        _same([env.goal(seed=7)], [goal], "between two goals of seed 7")
        _fits(env, goal, "goal")


def check_two_envs(subject: Subject) -> None:
    """Check that two envs that step alternately do not affect each other."""
    with built(subject) as env, built(subject) as other:
        alone = [_episode(e, seed=seed, count=2) for e, seed in ((env, 3), (other, 4))]
        env.reset(seed=3), other.reset(seed=4)
        for index, action in enumerate(actions(env, 2), start=1):
            for e, steps in zip((env, other), alone, strict=True):
                _same([e.step(action)[0]], [steps[index]], f"in step {index} of two envs in turn")


def check_bad_actions(subject: Subject) -> None:
    """Check that an action that is not finite, too short or out of bounds raises ShapeError."""
    with built(subject) as env:
        env.reset(seed=0)
        high = np.array(env.data_spec.action.high, np.float32)
        for name, bad in (
            ("a NaN", np.full_like(high, np.nan)),
            ("an action that is too short", high[:-1]),
            ("an action out of bounds", high + 0.5 * (np.abs(high) + 1)),
        ):
            refuses(name, ShapeError, lambda bad=bad: env.step(bad))  # type: ignore[misc]


def check_others_closing(subject: Subject) -> None:
    """Check that creating and freeing other envs does not change observations."""
    with built(subject) as env:
        wanted = copy(env.reset(seed=4)[0])
        for _ in range(6):
            other = subject.build()
            _same([other.reset(seed=4)[0]], [wanted], "between two envs of seed 4")
            env.reset(seed=1)
            del other  # frees its renderer, but not that of `env`
            _same([env.reset(seed=4)[0]], [wanted], "after another env was freed")


def check_expert(subject: Subject) -> None:
    """Check that the expert's actions are finite and within their bounds."""
    with built(subject) as env:
        if not isinstance(env, ExpertEnv):
            raise NotApplicable("has no expert()")
        rng = np.random.default_rng(0)
        observation, _ = env.reset(seed=6)
        for _ in range(3):
            try:
                action = env.expert(observation, rng)
            except ConfigError as e:
                raise NotApplicable(str(e)) from None
            _inside(env, action, "expert")
            observation = env.step(action)[0]


def check_length(subject: Subject) -> None:
    """Check that episode_length is a positive integer and an attribute of the class."""
    with built(subject) as env:
        if not isinstance(env, HasEpisodeLength):
            raise NotApplicable("not defined")
        length = env.episode_length
        require(isinstance(subject.make, HasEpisodeLength), "only the object has the attribute")
        require(isinstance(length, int) and length >= 1, f"episode_length is {length!r}")


def check_threshold(subject: Subject) -> None:
    """Check that success_threshold is positive."""
    with built(subject) as env:
        if not isinstance(env, HasSuccessThreshold):
            raise NotApplicable("not defined")
        require(env.success_threshold > 0, f"success_threshold is {env.success_threshold!r}")


def check_settings_for(subject: Subject) -> None:
    """Check that settings_for() of the env's spec returns fields of its Config."""
    if not isinstance(subject.make, AdaptableEnv):
        raise NotApplicable("has no settings_for()")
    with built(subject) as env:
        values = subject.make.settings_for(env.data_spec)
        known = {field.name for field in fields(subject.config)}
        require(set(values) <= known, f"unknown fields: {sorted(set(values) - known)}")


def check_render(subject: Subject) -> None:
    """Check that render() returns an image (h, w, 3) uint8."""
    with built(subject) as env:
        if not isinstance(env, RenderedEnv):
            raise NotApplicable("has no render()")
        env.reset(seed=0)
        try:
            image = env.render()
        except (ConfigError, NotImplementedError) as e:
            raise NotApplicable(str(e) or "render() is not implemented") from None
        image = np.asarray(image)
        fits = image.ndim == 3 and image.shape[-1] == 3 and image.dtype == np.uint8
        require(fits, f"it is {image.dtype} {image.shape}")


def check_gymnasium(subject: Subject) -> None:
    """Check that a gymnasium.Env passes gymnasium's own check."""
    import gymnasium
    from gymnasium.utils.env_checker import check_env

    with built(subject) as env, warnings.catch_warnings():
        if not isinstance(env, gymnasium.Env):
            raise NotApplicable("is not a gymnasium.Env")
        warnings.filterwarnings("ignore", message=".*(spec|render|Box).*")
        try:
            check_env(env, skip_render_check=True)
        except Exception as e:  # gymnasium raises errors of many types
            raise Broken(" ".join(str(e).split())) from None


@contextmanager
def built(subject: Subject) -> Iterator[Env]:
    """Build a new env for a context, and close it at the end."""
    env: Env = subject.build()
    try:
        yield env
    finally:
        env.close()


def actions(env: Env, count: int, seed: int = 0) -> Array:
    """Return actions (count, A) float32, uniform within their bounds."""
    rng, spec = np.random.default_rng(seed), env.data_spec.action
    return rng.uniform(spec.low, spec.high, (count, spec.size)).astype(np.float32)


def draw_goal(env: Env, seed: int) -> Observation:
    """Return a goal of the env's task, or the start of an episode if the env draws no goals."""
    if not isinstance(env, GoalSampler):
        return copy(env.reset(seed=seed)[0])
    try:
        return copy(env.goal(seed=seed))
    except ConfigError as e:  # a task without goals
        raise NotApplicable(str(e)) from None


def copy(observation: Observation) -> Observation:
    """Return a copy of an observation, since an env may reuse its buffers."""
    return {key: np.array(value) for key, value in observation.items()}


def _attempt(
    env: Env, seed: int, goal: Observation, rng: np.random.Generator | None
) -> tuple[bool | None, float]:
    """Return the success (None without a criterion) and the last distance of an attempt.

    Actions are random if there is an `rng`, and those of the oracle otherwise.
    """
    observation, _ = env.reset(seed=seed, options={"goal": goal})
    spec, success = env.data_spec.action, None
    distance = env.distance(observation, goal)
    for _ in range(env.episode_length if isinstance(env, HasEpisodeLength) else LENGTH):
        if rng is not None:
            action = rng.uniform(spec.low, spec.high).astype(np.float32)
        else:
            try:
                action = env.oracle(observation, goal)
            except ConfigError as e:
                raise NotApplicable(str(e)) from None
            _inside(env, action, "oracle")
        observation, _, terminated, truncated, info = env.step(action)
        distance = env.distance(observation, goal)
        if "success" in info:
            success = bool(info["success"])
        elif isinstance(env, HasSuccessThreshold):
            success = distance <= env.success_threshold
        if success or terminated or truncated:
            break
    return success, distance


def _episode(env: Env, *, seed: int, count: int = 4) -> list[Observation]:
    seen = [copy(env.reset(seed=seed)[0])]
    return seen + [copy(env.step(action)[0]) for action in actions(env, count)]


def _same(found: list[Observation], wanted: list[Observation], where: str) -> None:
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        differ = difference(one, other)
        require(not differ, f"{differ} differs {where}, observation {index}")


def _fits(env: Env, found: Observation, where: str) -> None:
    wanted = env.data_spec.observation
    differ = set(found) ^ set(wanted)
    require(not differ, f"keys of {where} are {sorted(found)}, of the spec {sorted(wanted)}")
    for key, array in wanted.items():
        shape, dtype = np.shape(found[key]), np.asarray(found[key]).dtype
        fits = shape == array.shape and dtype == np.dtype(array.dtype)
        need = f"{array.dtype} {array.shape}"
        require(fits, f"{key!r} of {where} is {dtype} {shape}, of the spec {need}")


def _inside(env: Env, action: Array, where: str) -> None:
    spec = env.data_spec.action
    found = np.asarray(action)
    require(found.shape == (spec.size,), f"{where}() returns shape {found.shape}")
    low, high = np.array(spec.low) - ROUNDING, np.array(spec.high) + ROUNDING
    inside = bool(((found >= low) & (found <= high)).all())
    require(inside, f"{where}() returns {found.tolist()}, out of bounds")
