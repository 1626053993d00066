"""Whether any stream of commands breaks a limit of the safety filter, and how long a step takes.

    python benchmarks/safety.py [STREAMS] [--seed SEED] [--json benchmarks/safety.json]

A stream is 40 ticks from rest at a random position, often at a joint limit: noise, constants,
steps, sines, numbers from 1e-6 to 1e8, held and late commands, and broken ones (NaN, no number, of
another shape), after which the arm must come to rest. Limits are held against what is sent at each
tick and against the straight lines between.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.real_robot.loop.safety import CONTROLS, SafetyFilter
from latentplan.real_robot.robot import Command, Setpoint
from latentplan.robots.chain import Chain
from latentplan.robots.description import load

TICKS = 40  # of a stream
ROUND = 200  # streams of each setting between two writings of the file
KINDS = ("noise", "constant", "steps", "sine", "magnitudes", "limits")
BROKEN = (
    lambda n: np.full(n, np.nan),
    lambda n: np.append(np.zeros(n - 1), np.inf),
    lambda n: [None] * n,
    lambda n: np.zeros(n + 1),
    lambda n: np.zeros((n, 1)),
    lambda n: ["fast"] * n,
)
Config = SafetyFilter.Config
SETTINGS = [
    (arm, Config(control=control, velocity=velocity, acceleration=acceleration, ramp=ramp))
    for arm in ("panda", "ur5e")
    for control in CONTROLS
    for velocity, acceleration, ramp in ((0.3, 0.5, 0.04), (1.0, 1.0, 0.0), (1.0, 0.2, 0.2))
]


class Fuzzer:
    """Random streams through one filter; `worst` is how near they came to its limits."""

    def __init__(self, arm: str, config: Config, *, seed: int = 0) -> None:
        """Find places to start from: within the limits and the box, a third at a joint limit."""
        self.name = arm
        self.filter = SafetyFilter(load(arm), config)
        self.chain = Chain(self.filter.arm)
        f, rng = self.filter, np.random.default_rng([seed, 1])
        self._rng = np.random.default_rng([seed, 2])
        q = rng.uniform(f.low, f.high, (40_000, len(f.low)))
        edge = rng.random(q.shape) < 0.3 / len(f.low)
        side = np.where(rng.random(q.shape) < 0.5, f.low, f.high)
        q = np.where(edge, side, q)
        ee = self.chain.ee(q)
        self.starts = q[((ee > config.low) & (ee < config.high)).all(1)]
        self.worst = dict.fromkeys(
            (
                "position_rad",
                "velocity_ratio",
                "acceleration_ratio",
                "jerk_ratio",
                "box_m",
                "box_between_ticks_m",
                "rest_ratio",
            ),
            -np.inf,
        )
        self.steps = self.faults = self.not_finite = 0
        self.wall: list[float] = []  # s, of each step
        self.cpu: list[float] = []

    def streams(self, count: int) -> None:
        """Run `count` streams."""
        for _ in range(count):
            self._stream()

    def broken(self) -> list[str]:
        """Return which limits were broken: by rounding at most, none is."""
        slack = {"position_rad": 1e-9, "box_m": 1e-9, "box_between_ticks_m": 2e-3}
        over = [k for k, v in self.worst.items() if v > slack.get(k, 1 + 1e-6)]
        return over + ["not_finite"] * (self.not_finite > 0)

    def _stream(self) -> None:
        f, rng = self.filter, self._rng
        q = self.starts[rng.integers(len(self.starts))]
        now, dt = 0.0, f.config.dt
        f.reset(q, gripper=0.0, now=now)
        sent = [Setpoint(q, 0 * q, 0 * q, 0.0, ())]
        for command in self._commands():
            measured = sent[-1].q + rng.uniform(-0.9, 0.9, len(q)) * f.config.lead
            before, cpu = time.perf_counter(), time.thread_time()
            setpoint = f.step(command, measured=measured, now=now)
            self.cpu.append(time.thread_time() - cpu)
            self.wall.append(time.perf_counter() - before)
            sent.append(setpoint)
            self.steps += 1
            if setpoint.fault:
                self.faults += 1
                sent += self._rest()
                f.reset(f.q, gripper=0.0, now=now)
                sent.append(sent[-1]._replace(ddq=0 * q))
            now += dt
        self._hold_against(sent + self._rest())

    def _rest(self) -> list[Setpoint]:
        """Bring the arm to rest; note how long that took."""
        f, sent = self.filter, []
        while not f.at_rest:
            sent.append(f.brake())
        allowed = np.ceil(f.stopping_time / f.config.dt)
        self._note("rest_ratio", len(sent) / allowed)
        return sent

    def _commands(self) -> list[Command]:
        f, rng = self.filter, self._rng
        n, kind = len(f.low), KINDS[self._rng.integers(len(KINDS))]
        t = np.arange(TICKS)[:, None]
        direction = rng.normal(size=n)
        if kind == "noise":
            action = rng.normal(size=(TICKS, n)) * rng.choice([0.1, 1, 10])
        elif kind == "constant":
            action = np.broadcast_to(direction * 3, (TICKS, n))
        elif kind == "steps":
            action = np.sign(np.sin(t * rng.uniform(0.05, 1.5) + rng.uniform(0, 6, n))) * direction
        elif kind == "sine":
            action = np.sin(t * rng.uniform(0.02, 1.5, n) + rng.uniform(0, 6, n)) * 2
        elif kind == "magnitudes":
            action = rng.normal(size=(TICKS, n)) * 10 ** rng.uniform(-6, 8, (TICKS, 1))
        else:  # every joint to the end of its range, and back at some tick
            turn = np.where(t < rng.integers(5, TICKS), 1.0, -1.0)
            action = np.sign(direction) * turn
        scale = f.limits.velocity
        if f.config.control == "joint_position":
            action = f.q + action * (f.high - f.low)
        elif f.config.control == "joint_delta":
            action = action * 0.3
        else:
            action = action * scale
        action = np.concatenate([action, rng.normal(size=(TICKS, 1))], 1)
        every = int(rng.integers(1, 6))  # ticks that an action holds
        commands = []
        for k in range(TICKS):
            made = k - k % every
            late = rng.random() < 0.05
            command = Command(action[made], made - 50 * late, (made - 3 * late) * f.config.dt)
            if rng.random() < 0.003:
                wrong: Any = BROKEN[rng.integers(len(BROKEN))](n + 1)
                command = command._replace(action=wrong, sequence=k + 1)
            commands.append(command)
        return commands

    def _hold_against(self, sent: list[Setpoint]) -> None:
        f, dt = self.filter, self.filter.config.dt
        q, dq, ddq = (np.array([getattr(s, name) for s in sent]) for name in ("q", "dq", "ddq"))
        self.not_finite += int((~np.isfinite([q, dq, ddq])).sum())
        limits = f.limits
        self._note("position_rad", max((f.low - q).max(), (q - f.high).max()))
        moved = np.abs(np.diff(q, axis=0)) / dt
        self._note("velocity_ratio", (np.maximum(np.abs(dq[1:]), moved) / limits.velocity).max())
        gained = np.maximum(np.abs(ddq[1:]), np.abs(np.diff(dq, axis=0)) / dt)
        self._note("acceleration_ratio", (gained / limits.acceleration).max())
        self._note("jerk_ratio", (np.abs(np.diff(ddq, axis=0)) / dt / limits.jerk).max())
        self._note("box_m", self._beyond(q))
        self._note("box_between_ticks_m", self._beyond((q[1:] + q[:-1]) / 2))

    def _beyond(self, q: np.ndarray[Any, Any]) -> float:
        ee, c = self.chain.ee(q), self.filter.config
        return float(max((c.low - ee).max(), (ee - c.high).max()))

    def _note(self, name: str, value: float) -> None:
        self.worst[name] = max(self.worst[name], float(value))

    def row(self) -> dict[str, Any]:
        """Return what was found, as JSON values."""
        return {
            "arm": self.name,
            "settings": asdict(self.filter.config),
            "steps": self.steps,
            "faults": self.faults,
            "not_finite": self.not_finite,
            "interventions": dict(self.filter.interventions),
            "worst": self.worst,
            "broken": self.broken(),
            "step_wall_us": _quantiles(self.wall),
            "step_cpu_us": _quantiles(self.cpu),
        }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    microseconds = np.array(seconds) * 1e6
    p50, p99 = np.percentile(microseconds, [50, 99])
    values = {"mean": microseconds.mean(), "p50": p50, "p99": p99, "max": microseconds.max()}
    return {name: round(float(value), 1) for name, value in values.items()}


def main() -> None:
    """Run all settings in turn; the file is written after every round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("streams", nargs="?", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    share = -(-given.streams // len(SETTINGS))
    fuzzers = [
        Fuzzer(arm, config, seed=given.seed + i) for i, (arm, config) in enumerate(SETTINGS)
    ]
    done = 0  # streams of each
    while done < share:
        count = min(ROUND, share - done)
        for fuzzer in fuzzers:
            fuzzer.streams(count)
        done += count
        broken = sorted({limit for fuzzer in fuzzers for limit in fuzzer.broken()})
        print(f"{done * len(fuzzers)} streams, broken: {broken or 'nothing'}", flush=True)
        report = {
            "streams": done * len(fuzzers),
            "steps": sum(fuzzer.steps for fuzzer in fuzzers),
            "broken": broken,
            "seed": given.seed,
            "load_average": os.getloadavg(),
            "rows": [fuzzer.row() | {"streams": done} for fuzzer in fuzzers],
        } | provenance()
        if given.json is not None:
            with replacing(given.json) as partial:
                partial.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
