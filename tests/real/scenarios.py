"""Scenarios that the tests of every ROS backend share, on a rig of theirs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from real.harness import DT, SPEED, Rig

ROOT = Path(__file__).parents[2]
SLACK = 3.0  # a machine that runs tests may be as much slower as that


def reset_is_refused(rig: Rig, *, silence: float) -> None:
    """While a sensor is silent, or the arm moves, a fault stays one; silent for so many s."""
    rig.cruise()
    rig.write("arm", "silent")
    time.sleep(silence)
    assert "silent for" in rig.ask("reset")["error"]
    rig.write("arm", "turning")
    until(lambda: "moves at 0.100 rad/s" in rig.ask("reset")["error"])
    assert rig.health()["state"] == "fault"
    rig.write("arm", "fine")
    until(lambda: rig.ask("reset")["error"] == "")


def begins_where_measured(rig: Rig) -> None:
    """After a fault the first setpoint is where the arm is, not where it was sent."""
    rig.cruise()
    assert rig.ask("fault", reason="a person")["error"] == ""
    until(lambda: rig.ask("reset")["error"] == "")  # as soon as it rests
    before = rig.record(time.monotonic() - 0.2)[1].rows[-1, 1:]
    rig.cruise()
    commands, _ = rig.record(rig.begun)
    np.testing.assert_allclose(commands.rows[0, 1:], before, atol=2e-3)
    assert np.abs(np.diff(commands.rows[:, 1:], axis=0)).max() <= 1.01 * SPEED * DT


def rested(rig: Rig) -> None:
    """Check that the arm stopped within its limits, was not cut off, and stands."""
    commands, joints = rig.record(rig.begun)
    assert np.abs(commands.speeds[-1]).max() < 1e-3
    steps = np.abs(np.diff(commands.speeds, axis=0)) / DT
    assert (steps <= 1.01 * rig.limits()[1]).all()
    assert np.abs(joints.dq[-1]).max() < 5e-3


def killed(rig: Rig, *, within: float) -> None:
    """Check that a killed node sends nothing more and the arm holds the last command."""
    rig.cruise()
    at = rig.processes["node"].signal(signal.SIGKILL)
    time.sleep(0.8)
    commands, joints = rig.record(rig.begun)
    assert commands.rows[-1, 0] < at + within
    assert np.abs(joints.dq[-1]).max() < 5e-3
    # Killed between two sockets it may have sent the arm a command that the record lacks.
    more = SPEED * DT
    np.testing.assert_allclose(joints.rows[-1, 1:], commands.rows[-1, 1:], atol=5e-3 + more)


def until(holds: Callable[[], Any], *, within: float = 20.0) -> None:
    """Wait until it holds; AssertionError where it does not."""
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def with_camera() -> dict[str, Any]:
    """Return the values of the Panda's description with a camera beside it."""
    values = dict(yaml.safe_load((ROOT / "configs" / "robot" / "panda.yaml").read_text()))
    lens = {"width": 64, "height": 64, "fx": 77.3, "fy": 77.3, "cx": 31.5, "cy": 31.5}
    pose = {"position": [1.1, 0.0, 0.7], "rotation": [0, 1, 0, 0]}
    return values | {"cameras": [{"name": "front", **lens, **pose}]}
