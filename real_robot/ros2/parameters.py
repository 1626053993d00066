"""The ROS parameters of the lifecycle node, and the settings that they set."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from latentplan import config
from latentplan.real_robot.backends.ros2 import Ros2Driver
from latentplan.real_robot.loop.node_process import Parameters
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor

SECTIONS: dict[str, Any] = {
    "mpc": Parameters,
    "backend": Ros2Driver.Config,
    "safety": SafetyFilter.Config,
    "supervisor": Supervisor.Config,
}
# The ranges that ROS tools show; the classes themselves check every field.
RANGES = {
    "period": (1e-3, 10.0),
    "backend.ahead": (1.0, 50.0),
    "backend.patience": (0.0, 3600.0),
    "safety.velocity": (1e-3, 1.0),
    "safety.acceleration": (1e-3, 1.0),
    "safety.ramp": (0.0, 1.0),
    "safety.margin": (0.0, 0.5),
    "safety.lead": (1e-3, 3.0),
    "supervisor.joints_age": (1e-3, 10.0),
    "supervisor.image_age": (1e-3, 10.0),
    "supervisor.clock_jump": (1e-2, 60.0),
    "supervisor.resting": (1e-4, 1.0),
}


def defaults() -> dict[str, Any]:
    """Return every parameter by its name, with its default."""
    values = {}
    for section, schema in SECTIONS.items():
        for field in fields(schema):
            name = field.name if section == "mpc" else f"{section}.{field.name}"
            values[name] = getattr(schema(), field.name)
    return values


def settings(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return a config a section; ConfigError if a parameter is unknown or out of its range."""
    chosen: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in parameters.items():
        section, dot, field = name.partition(".")
        chosen[section if dot else "mpc"][field if dot else name] = value
    return config.load(SECTIONS, preset=chosen)
