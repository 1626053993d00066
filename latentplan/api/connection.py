"""Connections to an arm: in this process, through a node that runs, or through one started here.

Nothing here imports torch at the top: a node runs in ROS's environment, which may lack it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from latentplan import config, registry
from latentplan.errors import ConfigError
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.loop import node_process
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.real_robot.robot import Driver, View
from latentplan.robots import description
from latentplan.robots.description import Arm

if TYPE_CHECKING:
    from latentplan.sim.deformable.scene import Scene

PATIENCE = 15.0  # s in which a node answers on a busy machine; it stops its arm much sooner


@dataclass(frozen=True)
class Connection:
    """How an arm is reached."""

    arm: Arm
    robot: str  # its name or file
    backend: str | None  # None: whatever the node at `address` has
    address: tuple[str, int] | None
    python: str = sys.executable  # interpreter of the node
    reset: bool = False  # clear the stop of an arm that was stopped
    period: float = 0.1  # s that an action lasts
    settings: Mapping[str, Any] = field(default_factory=dict)  # backend, safety, supervisor

    @property
    def here(self) -> bool:
        """Whether the arm is in this process: a simulated one, whose clock waits for it."""
        return self.backend == "sim" and self.address is None


def connection(
    backend: str | None = None,
    *,
    robot: str = "panda",
    address: str | None = None,
    python: str | None = None,
    reset: bool = False,
) -> Connection:
    """Return how an arm is reached, without its settings.

    `robot` is a registered arm or a YAML file; `address` HOST:PORT of a node. With neither backend
    nor address the arm is simulated. Raises a LatentplanError if there is no such arm or backend.
    """
    if backend is not None:
        registry.get("backend", backend)
    where = None if address is None else node_process.parse_address(address)
    arm = description.load(robot)
    chosen = backend if backend is not None or address is not None else "sim"
    return Connection(arm, robot, chosen, where, python or sys.executable, reset)


def sections(backend: str | None) -> dict[str, type]:
    """Return the sections of settings of an arm by `backend`; none for a node that runs already."""
    if backend is None:
        return {}
    return {
        "backend": registry.get("backend", backend).Config,
        "safety": SafetyFilter.Config,
        "supervisor": Supervisor.Config,
    }


def build(
    found: Connection, *, cameras: Sequence[View] = (), scene: Scene | None = None
) -> tuple[Driver, Supervisor]:
    """Return the driver and the supervisor of an arm, not yet connected.

    A simulated arm is seen by `cameras` and brings those of its scene, a real one by its own.
    """
    assert found.backend is not None
    make = registry.get("backend", found.backend)
    settings = found.settings
    more: dict[str, Any] = {"cameras": cameras if found.backend == "sim" else found.arm.cameras}
    if scene is not None:
        more["scene"] = scene
    driver: Driver = make(found.arm, settings["backend"], **more)
    safety = SafetyFilter(found.arm, settings["safety"])
    return driver, Supervisor(safety, settings["supervisor"], cameras=driver.cameras)


@contextmanager
def connected(
    found: Connection,
    *,
    driver: Driver | None = None,
    supervisor: Supervisor | None = None,
    make: type[LocalRobot] = LocalRobot,
) -> Iterator[LocalRobot | RemoteRobot]:
    """Yield the robot, armed; it is stopped at the end, whatever ends the block.

    In this process it has the driver and supervisor that are given, or new ones; else it is reached
    through a node, which is started here if the backend is named.
    """
    with ExitStack() as stack:
        if found.here:
            if driver is None or supervisor is None:
                driver, supervisor = build(found)
            yield stack.enter_context(make(driver, supervisor, period=found.period))
            return
        address = found.address
        if found.backend is not None:
            command = node_process.argv(
                found.backend,
                robot=found.robot,
                address=address or ("127.0.0.1", 0),
                overrides=changed(found.settings),
                python=found.python,
            )
            address = stack.enter_context(node_process.NodeProcess(command)).address
        assert address is not None
        remote = stack.enter_context(RemoteRobot(address, patience=PATIENCE, forgive=found.reset))
        check_arm(found, remote.spec.joints)
        yield remote


def check_arm(found: Connection, joints: Sequence[str]) -> None:
    """Raise ConfigError unless a node drives the arm that is described here."""
    described = tuple(joint.name for joint in found.arm.joints)
    if tuple(joints) != described:
        raise ConfigError(
            f"robot {found.robot!r}: its joints are {', '.join(described)}, the node's are "
            f"{', '.join(joints)}; give the description that the node was started with"
        )


def real_time(backend: str) -> dict[str, Any]:
    """Return the settings that make a backend's clock the machine's, which a node needs."""
    schema = registry.get("backend", backend).Config
    return {"real_time": True} if any(f.name == "real_time" for f in fields(schema)) else {}


def changed(settings: Mapping[str, Any]) -> list[str]:
    """Return key=value of what differs from the defaults of backend, safety and supervisor."""
    found = []
    for section in ("backend", "safety", "supervisor"):
        if section not in settings:
            continue
        given = config.to_values(settings[section])
        default = config.to_values(type(settings[section])())
        found += [
            f"{section}.{key}={json.dumps(value)}"
            for key, value in given.items()
            if value != default[key]
        ]
    return found


def check_control(settings: Mapping[str, Any], what: str) -> None:
    """Raise ConfigError unless the arm is under joint velocities."""
    control = settings["safety"].control if "safety" in settings else "joint_velocity"
    if control != "joint_velocity":
        raise ConfigError(f"safety.control: found {control}, {what} needs joint_velocity")
