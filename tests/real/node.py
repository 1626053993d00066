"""A node for one arm: `python node.py BACKEND CAMERAS PORT FILE [SECTION.KEY=VALUE ...]`.

CAMERAS are names with commas, of images of 64x64 pixels. It prints `ready` when it listens, and
`left` when it ended well. For the backend `sim` it is the arm and its camera, too: it has the
faults of its stdin, and records the setpoints in FILE.
"""

from __future__ import annotations

import sys

from latentplan import config, registry
from latentplan.errors import LatentplanError
from latentplan.real_robot.loop.node import Node
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.robots import description
from latentplan.sim.rendering.cameras import Camera


def main() -> None:
    backend, cameras, port = sys.argv[1:4]
    overrides = sys.argv[5:]
    if backend == "sim":
        from real.faulty_simulation import FaultySimulation as driver_class
    else:
        driver_class = registry.get("backend", backend)
    sections = {
        "backend": driver_class.Config,
        "safety": SafetyFilter.Config,
        "supervisor": Supervisor.Config,
    }
    settings = config.load(sections, overrides=overrides)
    arm = description.load("panda")
    views = [Camera(name, (1.1, 0.0, 0.7)) for name in cameras.split(",") if name]
    driver = driver_class(arm, settings["backend"], cameras=views)
    supervisor = Supervisor(
        SafetyFilter(arm, settings["safety"]), settings["supervisor"], cameras=driver.cameras
    )
    node = Node(driver, supervisor, address=("127.0.0.1", int(port)))
    node.run(ready=lambda: print("ready", flush=True))
    print("left", flush=True)


if __name__ == "__main__":
    try:
        main()
    except LatentplanError as e:
        print(e, file=sys.stderr, flush=True)
        sys.exit(2)
