"""What starts fast stays so: heavy packages load when they are first needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "gymnasium",
    "matplotlib",
    "mujoco",
    "numcodecs",
    "omegaconf",
    "scipy",
    "tensorboard",
    "torch",
    "zarr",
}


def loaded_by(statement: str) -> set[str]:
    program = f"""
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()):
    {statement}
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "statement",
    [
        "import latentplan",
        "import latentplan.cli, latentplan.config, latentplan.registry, latentplan.protocols",
        "from latentplan.cli import main; main(['--help'])",
        "from latentplan.cli import main; main(['train', '--help'])",
        "from latentplan.cli import main; main(['--version'])",
        "from latentplan.commands import collect, list, plan, progress, show, doctor, train",
        "from latentplan.api import choice, collect, evaluate, names, record, replay, robot, show",
    ],
)
def test_nothing_heavy_is_imported(statement: str) -> None:
    assert not loaded_by(statement) & HEAVY


def test_a_list_of_names_needs_no_simulator_and_no_torch() -> None:
    assert not loaded_by("from latentplan.cli import main; main(['list'])") & (
        HEAVY - {"omegaconf"}
    )
