"""A node that drives a simulated Panda in real time: `python tests/sim_node.py [AGE]`.

It prints its port when it listens, and what went on when it ends. Its limits on time are wide,
except for AGE, since the machines that run tests are busy.
"""

import json
import sys

import numpy as np

from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.loop.node import Node
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.robots.description import load

arm = load("panda")
safety = SafetyFilter(arm, SafetyFilter.Config(age=float(sys.argv[1])))
patient = Supervisor.Config(joints_age=5, image_age=5, overruns=100, clock_jump=10)
driver = SimulatedDriver(arm, SimulatedDriver.Config(real_time=True))
node = Node(driver, Supervisor(safety, patient))
print(node.address[1], flush=True)
node.run()
print(
    json.dumps(
        {
            "torch": "torch" in sys.modules,
            "state": node.supervisor.state,
            "speed": float(np.abs(node.supervisor.reading.dq).max()),
            "ticks": node.supervisor.ticks,
        }
    ),
    flush=True,
)
