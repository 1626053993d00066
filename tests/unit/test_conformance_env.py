"""The checks of envs find what is broken: an env that keeps all, and one that breaks each."""

from dataclasses import replace

import numpy as np
import pytest
from toy import ToyEnv

from latentplan.conformance import env as suite
from latentplan.conformance.suite import Broken, Subject, checks, run
from latentplan.errors import ShapeError
from latentplan.types import Spec, Step


class Kept(ToyEnv):
    """The toy env with all that an env may have."""

    episode_length = 6
    success_threshold = 0.01

    @staticmethod
    def settings_for(spec: Spec):
        return {"discs": spec.observation["keypoints"].shape[0]}

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        self.target = (options or {}).get("goal")
        return observation, {"task": "tidy", "text": "tidy up"}

    def step(self, action):
        if len(action) != 4 or not (np.abs(action) <= 1).all():
            raise ShapeError("Kept.action: not within [-1, 1]")
        found = super().step(action)
        if self.target is None:
            return found
        return found._replace(info={"distance": self.distance(found.observation, self.target)})

    def goal(self, *, seed):
        state = self.snapshot(), getattr(self, "target", None)
        try:
            return self.reset(seed=seed)[0]
        finally:
            self.restore(state[0])
            self.target = state[1]

    def render(self):
        return self._observe()["rgb"]


class Unnamed(Kept):
    def __init__(self, config=None):
        super().__init__(config)
        self.data_spec = replace(self.data_spec, env="other")


class Unspecified(Kept):
    def _observe(self):
        seen = super()._observe()
        return {**seen, "keypoints": seen["keypoints"].astype(np.float64)}


class Extra(Kept):
    def _observe(self):
        return {**super()._observe(), "velocity": np.zeros(2, np.float32)}


class Seedless(Kept):
    def reset(self, *, seed=None, options=None):
        return super().reset(options=options)


class AlwaysAlike(Kept):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=0, options=options)


class Forgetful(Kept):
    def snapshot(self):
        return (self._points + 1e-3, self._rng.bit_generator.state)


class Negative(Kept):
    def distance(self, observation, goal):
        return super().distance(observation, goal) + 0.1


class Lying(Kept):
    def step(self, action):
        found = super().step(action)
        return found._replace(info={"distance": 0.5} if self.target else {})


class Lost(Kept):
    def oracle(self, observation, goal):
        return np.zeros(4, np.float32)


class TooEasy(Kept):
    def step(self, action):
        return super().step(action)._replace(info={"success": True})


class Disturbing(Kept):
    def goal(self, *, seed):
        return self.reset(seed=seed)[0]


class Shared(Kept):
    drawn = np.zeros(1)

    def step(self, action):
        Shared.drawn = Shared.drawn + 1
        self._points = self._points + 1e-3 * Shared.drawn
        return super().step(action)

    def reset(self, *, seed=None, options=None):
        Shared.drawn = np.zeros(1)
        return super().reset(seed=seed, options=options)


class Lenient(Kept):
    def step(self, action):
        return super().step(np.clip(np.nan_to_num(action), -1, 1))


class Counting(Kept):
    built = 0

    def __init__(self, config=None):
        super().__init__(config)
        Counting.built += 1

    def _observe(self):
        seen = super()._observe()
        return {**seen, "keypoints": seen["keypoints"] + np.float32(Counting.built)}


class Wild(Kept):
    def expert(self, observation, rng):
        return np.full(4, 2.0, np.float32)


class Endless(Kept):
    episode_length = 0


class Strict(Kept):
    success_threshold = 0.0


class Misfit(Kept):
    @staticmethod
    def settings_for(spec: Spec):
        return {"disks": 3}


class Colourless(Kept):
    def render(self):
        return self._observe()["rgb"][..., 0]


class Tuple(Kept):
    def step(self, action):
        return super().step(action)[:4]


BREAKS = [
    ("spec", Unnamed, "data_spec.env is 'other', its registered name 'toy'"),
    ("observations", Unspecified, "'keypoints' of reset is float64 (3, 2), of the spec float32"),
    ("observations", Extra, "keys of reset are"),
    ("observations", Tuple, "step returns 4 values, need 5"),
    ("seeds", Seedless, "differs after seed 11 twice"),
    ("seeds", AlwaysAlike, "seeds 11 and 12 give the same start"),
    ("snapshots", Forgetful, "keypoints differs in the result of restore"),
    ("distance", Negative, "distance(goal, goal) is 0.1"),
    ("distance", Lying, "info['distance'] is 0.5"),
    ("oracle", Lost, "of 3 goals the oracle reaches 0"),
    ("oracle", TooEasy, "of 3 goals the oracle reaches 3, random actions 3"),
    ("goals", Disturbing, "in the episode after goal()"),
    ("two_envs", Shared, "of two envs in turn"),
    ("bad_actions", Lenient, "a NaN is accepted, need ShapeError"),
    ("others_closing", Counting, "differs between two envs of seed 4"),
    ("expert", Wild, "out of bounds"),
    ("length", Endless, "episode_length is 0"),
    ("threshold", Strict, "success_threshold is 0.0"),
    ("settings_for", Misfit, "unknown fields: ['disks']"),
    ("render", Colourless, "it is uint8 (64, 64)"),
]


def of(made):
    return Subject("env", "toy", made, made.Config())


def test_an_env_that_keeps_all_passes():
    results = list(run(of(Kept)))
    assert [r for r in results if r.status == "FAILED"] == []
    assert [r.promise for r in results if r.status == "skipped"] == [
        "a gymnasium.Env passes gymnasium's own check"
    ]


@pytest.mark.parametrize("check, made, found", BREAKS, ids=[b[1].__name__ for b in BREAKS])
def test_what_is_broken_is_found(check, made, found):
    with pytest.raises(Broken) as raised:
        checks("env")[check](of(made))
    assert found in str(raised.value)


def test_each_check_of_an_own_env_can_fail():
    assert {check for check, _, _ in BREAKS} == checks("env").keys() - {"gymnasium"}


def test_gymnasium_finds_what_its_rules_forbid():
    import gymnasium

    class Spaceless(Kept, gymnasium.Env):
        pass

    with pytest.raises(Broken, match="must specify an action space"):
        suite.check_gymnasium(of(Spaceless))


def test_an_error_of_the_env_is_a_failure_with_its_line():
    class Torn(Kept):
        def step(self, action):
            return Step(1 / 0, 0, False, False, {})

    failed = {r.promise: r.found for r in run(of(Torn))}
    assert any("ZeroDivisionError: division by zero (test_conf" in f for f in failed.values())
