"""A planner in a process of its own that turns the first joint, with the faults of its stdin.

`python tests/real/planner.py PORT [SPEED] [busy]`. It reads lines from stdin: `go` resets and arms;
a fault alters its commands until `fine`. With `nan`, `infinite`, `shape` and `huge` the actions are
wrong, with `late` they answer the same old observation, and with `replay` the first command is sent
again. It goes on sending whatever the node replies. Events are printed as JSON, a line each.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from typing import Any

import numpy as np

from latentplan.real_robot.link.messages import Channel, Message

WRONG = {
    "nan": lambda action: np.where(np.arange(len(action)) == 1, np.nan, action),
    "infinite": lambda action: np.where(np.arange(len(action)) == 1, np.inf, action),
    "shape": lambda action: action[:3],
    "huge": lambda action: action * 1e6,
}
FARTHEST = 2.2  # rad, where the first joint turns back


class Planner:
    """A planner that commands an arm, whatever its state."""

    def __init__(self, port: int, speed: float) -> None:
        self.channel = Channel(socket.create_connection(("127.0.0.1", port), timeout=20))
        self.speed, self.fault = speed, "fine"
        self.seen = Message("observation", {"number": 0})
        self.sequence = 0
        self.q, self.sign = 0.0, 1.0
        self.moving = False
        self.first: Any = None  # the first command of a motion
        self.lock = threading.Lock()  # what is sent comes from two threads
        self.tell("plan")
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        for line in sys.stdin:
            self.fault = line.strip()
            if self.fault == "go":
                self.moving, self.first = False, None
                self.tell("reset")
                self.tell("arm")
            elif self.fault != "fine" and self.moving:
                self.act()
        os._exit(0)  # its parent process is gone

    def run(self, *, busy: bool) -> None:
        state = ""
        if busy:
            import torch

            matrix = torch.randn(600, 600)
        while True:
            for message in self.channel.heard():
                values = message.values
                if message.kind == "reply" and values["to"] == "arm":
                    self.moving = not values["error"]
                    self.sign = -1.0 if self.q > 0 else 1.0  # away from the joint's limits
                    event = "armed" if self.moving else "refused"
                    emit(event, reason=values["error"])
                if message.kind == "observation":
                    if self.fault != "late":
                        self.seen = message
                    self.q = float(message.arrays["q"][0])
                    if abs(self.q) > FARTHEST:  # on a busy machine the fault comes late
                        self.sign = -1.0 if self.q > 0 else 1.0
                    if not self.moving:
                        continue
                    end = time.monotonic() + 0.05
                    while busy and time.monotonic() < end:
                        matrix = torch.tanh(matrix @ matrix / 25)
                    self.act()
                if message.kind != "spec" and values["health"]["state"] != state:
                    state = values["health"]["state"]
                    emit("state", state=state, reason=values["health"]["reason"])
            select.select([self.channel.socket], [], [], 0.1)

    def tell(self, kind: str, values: Any = None, arrays: Any = None) -> None:
        with self.lock:
            self.channel.tell(Message(kind, values or {"id": kind}, arrays or {}))

    def act(self) -> None:
        """Answer the newest observation."""
        joints = len(self.seen.arrays.get("q", np.empty(7)))
        action = np.zeros(joints + 1)
        action[0], action[-1] = self.sign * self.speed, 1.0
        wrong = WRONG.get(self.fault)
        if wrong is not None:
            action = wrong(action)
        if self.fault == "replay" and self.first is not None:
            self.tell(*self.first)
            return
        self.sequence += 1
        values = {"sequence": self.sequence, "observation": self.seen.values["number"]}
        self.tell("command", values, {"action": action})
        self.first = self.first or ("command", values, {"action": action})
        if wrong is not None:
            emit("sent", fault=self.fault)


def emit(event: str, **values: Any) -> None:
    line = json.dumps({"event": event, "t": time.monotonic()} | values)
    sys.stdout.write(line + "\n")  # at once: several threads send
    sys.stdout.flush()


if __name__ == "__main__":
    speed = float(sys.argv[2]) if len(sys.argv) > 2 else 0.5
    Planner(int(sys.argv[1]), speed).run(busy="busy" in sys.argv)
