"""Images do not depend on who imported MuJoCo first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("before", [{}, {"MUJOCO_GL": "off"}, {"MUJOCO_GL": "glfw"}])
def test_mujoco_may_be_imported_before_an_env(before: dict[str, str]) -> None:
    program = (
        "import os, mujoco; os.environ.pop('MUJOCO_GL', None); "
        "from latentplan.sim.rendering import mujoco_renderer; print(mujoco_renderer.self_test())"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment | before,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() in ("egl", "osmesa")
