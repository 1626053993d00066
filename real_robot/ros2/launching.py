"""The command line of the lifecycle node, for launch files and for use by hand."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence


def argv(
    *,
    config: str = "",
    name: str = "mpc",
    namespace: str = "",
    parameters: Mapping[str, str] | None = None,
    remappings: Sequence[tuple[str, str]] = (),
    python: str = sys.executable,
) -> list[str]:
    """Return the command line that starts `mpc_node`.

    `config` is a file of parameters, `parameters` are more of them in YAML, `remappings` are topics
    (from, to), and `python` is an interpreter that can import latentplan and rclpy.
    """
    words = [python, "-m", "latentplan.real_robot.ros2.mpc_node", "--ros-args"]
    words += ["-r", f"__node:={name}"]
    if namespace.strip("/"):
        words += ["-r", f"__ns:=/{namespace.strip('/')}"]
    for old, new in remappings:
        words += ["-r", f"{old}:={new}"]
    if config:
        words += ["--params-file", config]
    for key, value in (parameters or {}).items():
        words += ["-p", f"{key}:={value}"]
    return words
