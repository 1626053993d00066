"""What `robot`, `record` and `replay` share: an arm in this process, behind a node, or started.

Nothing here imports torch at the top: a node runs where ROS is, and that may be all there is.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
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

TERMINATED = 143  # 128 + SIGTERM, what shells expect
PATIENCE = 15.0  # s in which a node answers, also on a busy machine; it stops its arm much sooner


@dataclass(frozen=True)
class Way:
    """How a command gets to an arm."""

    arm: Arm
    robot: str  # its name or file
    backend: str | None  # None: whatever the node at `address` has
    address: tuple[str, int] | None
    python: str = sys.executable  # that runs the node
    reset: bool = False  # an arm that was stopped may go on
    period: float = 0.1  # s that an action holds
    settings: Mapping[str, Any] = field(default_factory=dict)  # backend, safety, supervisor

    @property
    def here(self) -> bool:
        """Return whether the arm is in this process: a simulated one with a clock that waits."""
        return self.backend == "sim" and self.address is None


def way(
    *,
    backend: str | None,
    robot: str,
    address: str | None,
    python: str | None = None,
    reset: bool = False,
) -> Way:
    """Return how to get to an arm, its settings not yet read; a LatentplanError where none is."""
    if backend is not None:
        registry.get("backend", backend)
    where = None if address is None else node_process.parse_address(address)
    arm = description.load(robot)
    chosen = backend if backend is not None or address is not None else "sim"
    return Way(arm, robot, chosen, where, python or sys.executable, reset)


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
    found: Way, *, cameras: Sequence[View] = (), scene: Scene | None = None
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
    found: Way,
    *,
    driver: Driver | None = None,
    supervisor: Supervisor | None = None,
    make: type[LocalRobot] = LocalRobot,
) -> Iterator[LocalRobot | RemoteRobot]:
    """Give the robot, armed; it is stopped at the end, whatever ends it.

    In this process with the driver and supervisor that are given or built; else through a node,
    which is started here where the backend is named. SIGTERM ends the block as Ctrl-C does.
    """
    with ExitStack() as stack:
        stack.enter_context(_terminable())
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


def check_arm(found: Way, joints: Sequence[str]) -> None:
    """Raise ConfigError unless a node drives the arm that is described here."""
    described = tuple(joint.name for joint in found.arm.joints)
    if tuple(joints) != described:
        raise ConfigError(
            f"--robot {found.robot}: its joints are {', '.join(described)}, the node's are "
            f"{', '.join(joints)}; give the description that the node was started with"
        )


def real_time(backend: str) -> dict[str, Any]:
    """Return the settings of a backend whose clock is the machine's, which a node needs."""
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


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block with an exception, so that the arm is stopped on the way out."""

    def end(*_: object) -> None:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
