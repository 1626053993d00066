"""`latentplan robot`, `record` and `replay`, typed as users do, on a simulated arm."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentplan.api.connection import connection
from latentplan.api.robot_choice import choose
from latentplan.api.robot_tasks import Planned
from latentplan.cli import main
from latentplan.data.store import ZarrStore
from latentplan.errors import CheckpointError
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.loop import node_process
from latentplan.real_robot.motion.hold_position import hold_position_while
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.deformable.scene import Scene

# The machines that run tests are busy; what is late there is not what is tested.
PATIENT = [
    "supervisor.joints_age=5",
    "supervisor.image_age=5",
    "supervisor.overruns=100",
    "supervisor.clock_jump=10",
    "safety.age=5",
]


def test_a_run_plans_for_a_simulated_arm_in_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    command = ["robot", "--backend", "sim", "--run", "rope-cfm", "--episodes", "1"]
    assert main([*command, "--steps", "3", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "episode 1: start " in told and "interventions 0, faults 0" in told
    metrics = json.loads((out / "metrics.json").read_text())
    (episode,) = metrics["each"]
    assert episode["actions"] + episode["refused"] == 3 and episode["actions"] > 0
    assert 0 < episode["final"] < episode["start"]
    assert metrics["interventions"] == {} and metrics["backend"] == "sim"
    assert (out / "video.mp4").stat().st_size > 1000


def test_what_is_recorded_is_played_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(tmp_path / "reach.zarr")
    command = ["record", "--task", "reach", "--out", data, "--episodes", "2", "--steps", "12"]
    assert main([*command, "planner.candidates=64"]) == 0
    assert "new 2 episodes" in capsys.readouterr().out
    with ZarrStore.open(data) as store:
        recorded = store.episode(1)
        assert store.spec.dt == pytest.approx(0.1)
        assert store.spec.action.convention.control == "joint_velocity"
        steps = np.diff(recorded.observations["q"], axis=0)
        np.testing.assert_allclose(steps, 0.1 * recorded.actions[:, :-1], atol=0.04)
        assert recorded.observations["front"].shape[1:] == (256, 256, 3)
    assert main(["replay", data, "--episode", "1"]) == 0
    mean, worst = played(capsys.readouterr().out)
    assert mean < 0.03 and worst < 0.08
    assert main(["replay", data, "--episode", "1", "playing.gain=0.5"]) == 0
    told = capsys.readouterr().out
    assert played(told)[0] < mean and "interventions 0" in told
    # What does not fit is refused.
    for options, message in (
        (["--episode", "2"], "--episode: 2 is not there"),
        (["--episode", "1", "--robot", "ur5e"], "its joints are (7,), the arm's (6,)"),
        (["safety.control=joint_delta"], "its control is joint_velocity, here joint_delta"),
    ):
        assert main(["replay", data, *options]) == 2
        assert message in capsys.readouterr().err


def played(told: str) -> tuple[float, float]:
    """Return the mean and the largest distance of a joint, rad, that `replay` told."""
    line = next(line for line in told.splitlines() if line.startswith("joints: "))
    mean, _, rest = line.removeprefix("joints: ").partition(" rad away on the mean, ")
    return float(mean), float(rest.partition(" ")[0])


def test_a_node_a_planner_and_a_watcher_in_processes_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = node_process.argv("sim", address=("127.0.0.1", 0), overrides=PATIENT)
    assert command[1:4] == ["-m", "latentplan.cli", "robot"]
    with node_process.NodeProcess(command) as node:
        host, port = node.address
        where = ["--address", f"{host}:{port}"]
        data = str(tmp_path / "watched.zarr")
        codes: list[int] = []
        watch = ["record", *where, "--out", data, "--episodes", "1", "--steps", "3"]
        watcher = threading.Thread(target=lambda: codes.append(main(watch)))
        watcher.start()
        out = ["--out", str(tmp_path / "planned")]
        assert main(["robot", *where, "--task", "reach", "--episodes", "1", *out]) == 0
        watcher.join(60)
        assert codes == [0]
        metrics = json.loads((tmp_path / "planned" / "metrics.json").read_text())
        assert metrics["faults"] == 0
        assert metrics["each"][0]["final"] < metrics["each"][0]["start"]
        # The planner has stopped the arm: somebody has to say that it may go on.
        again = ["robot", *where, "--task", "reach", "--steps", "1", *out]
        assert main(again) == 2
        assert "the arm is hold" in capsys.readouterr().err
        assert main([*again, "--reset"]) == 0
        assert main(["robot", *where, "--task", "reach", "--robot", "ur5e", "--reset"]) == 2
        assert "robot 'ur5e': its joints are shoulder_pan" in capsys.readouterr().err
        taken = node_process.argv("sim", address=node.address)
        with pytest.raises(Exception, match="is not available"), node_process.NodeProcess(taken):
            pass
    with ZarrStore.open(data) as store:
        watched = store.episode(0)
        assert len(watched) == 3 and watched.observations["q"].shape == (4, 7)
        moved = np.diff(watched.observations["q"], axis=0)
        np.testing.assert_allclose(moved, 0.1 * watched.actions[:, :-1], atol=0.06)


@pytest.mark.slow
def test_an_arm_stands_still_while_its_planner_thinks() -> None:
    overrides = [*PATIENT[:-1], "safety.age=3.0"]
    command = node_process.argv("sim", address=("127.0.0.1", 0), overrides=overrides)
    with (
        node_process.NodeProcess(command) as node,
        RemoteRobot(node.address, patience=20) as robot,
    ):
        begin = robot.observe()["q"]
        assert hold_position_while(robot, lambda: time.sleep(6) or "thought") == "thought"
        assert robot.health().state == "armed"
        np.testing.assert_allclose(robot.observe()["q"], begin, atol=2e-3)
        with pytest.raises(ZeroDivisionError):
            hold_position_while(robot, lambda: 1 / 0)


def test_a_node_needs_no_torch_and_stops_its_arm_when_it_is_told_to_end() -> None:
    program = (
        "import sys; from latentplan.cli import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules, code, flush=True)"
    )
    arguments = node_process.argv("sim", address=("127.0.0.1", 0), overrides=PATIENT)[3:]
    node = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert node.stdout is not None
        address = node_process.LISTENS.search(node.stdout.readline().strip())
        assert address is not None
        with RemoteRobot((address[1], int(address[2])), patience=20) as robot:
            for _ in range(5):
                robot.observe()
                robot.send(np.append([0.4, 0, 0, 0, 0, 0, 0], 1))
            node.send_signal(signal.SIGTERM)
            out, _ = node.communicate(timeout=30)
            assert out.splitlines() == [
                "node: left panda hold (the node is leaving)",
                "False 0",
            ]
            with pytest.raises(Exception, match="connection"):
                robot.observe()
                robot.send(np.zeros(8))
            robot.stop = lambda reason: None  # nobody is there to be told
    finally:
        node.kill()
        node.wait()


@pytest.mark.slow_with("15-143")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_arm_before_the_planner_ends(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "latentplan.cli", "robot", "--task", "reach"]
    process = subprocess.Popen(
        [*command, "--episodes", "1000", "--out", str(out)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("episode 1:")
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code
    finally:
        process.kill()
        process.wait()
    assert json.loads((out / "metrics.json").read_text())["episodes"] >= 1


def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "goal.png"
    Image.new("RGB", (80, 100)).save(small)
    limits = tmp_path / "limits.yaml"
    shipped = Path(node_process.__file__).parents[2] / "configs" / "robot" / "panda.yaml"
    limits.write_text(shipped.read_text().replace("jerk: 7500, ", "", 1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rope = ["--run", "rope-cfm"]
    for arguments, message in (
        (["--backend", "serial", *rope], "no backend named 'serial'"),
        ([], "--run: found neither a run nor a task"),
        (["--task", "dance"], "no task named 'dance'"),
        (["--task", "reach", *rope], "found together with a run"),
        (["--task", "reach", "--goal", "x.png"], "--goal: is for a run"),
        (["--task", "reach", "--robot", "arm7"], "no robot named 'arm7'"),
        (["--task", "reach", "--robot", str(limits)], "jerk missing; see the arm's data sheet"),
        (["--task", "reach", "--address", "here"], "--address: found 'here', need HOST:PORT"),
        (["--task", "reach", "--address", f"127.0.0.1:{port}"], "does not answer"),
        (["--task", "reach", "safety.control=joint_delta"], "reach needs joint_velocity"),
        (["--task", "reach", "--python", "/none", "--address", "127.0.0.1:0", "--backend", "sim"],
         "--python /none: cannot be run"),
        (["--backend", "ros2", "--task", "reach"], "node: does not run; its output: "),
        (["--address", f"127.0.0.1:{port}"], "--backend: none given"),
        ([*rope, "--goal", str(small)], "found 80 x 100 pixels, the model needs 64 x 64"),
        ([*rope, "--goal-text", "open"], "found the words 'open'; goal.observation: found none"),
        ([*rope, "--goal-text", "open", "--goal", str(small)], "--goal-text: found together with"),
        ([*rope, "--goal", str(limits)], "not a whole PNG"),
        ([*rope, "backend.scene=rope_straighten", "speed=3"], "no key 'speed'"),
        ([*rope, "backend.scene=tabletop"], "no rope or cloth"),
    ):
        assert main(["robot", *arguments, "--out", str(tmp_path / "out")]) == 2, arguments
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1, told
    data = ["record", "--out", str(tmp_path / "no.zarr")]
    assert main([*data, "--backend", "ros2"]) == 2
    assert "in one process there is sim alone" in capsys.readouterr().err
    assert main([*data, "--address", "127.0.0.1:1", "--task", "reach"]) == 2
    assert "is only watched" in capsys.readouterr().err
    assert not (tmp_path / "no.zarr").exists() and not os.path.exists(tmp_path / "out")


def test_a_camera_of_another_resolution_is_refused_before_anything_moves() -> None:
    task = choose(
        connection("sim"),
        run="rope-cfm",
        steps=None,
        goal=None,
        planner="cem",
        objective="goal",
        seed=0,
        device="cpu",
        overrides=[],
    )
    assert isinstance(task, Planned)
    task.scene = Scene(Rope(Rope.Config(image=128)))
    told = r"observation 'rgb' is uint8 \(128, 128, 3\), need uint8 \(64, 64, 3\)"
    with pytest.raises(CheckpointError, match=told), task.connected():
        pass


def test_picks_go_through_a_node(tmp_path: Path) -> None:
    goal = tmp_path / "goal.png"
    env = Rope()
    Image.fromarray(env.goal(seed=5)["rgb"]).save(goal)
    env.close()
    out = tmp_path / "out"
    command = ["robot", "--backend", "sim", "--address", "127.0.0.1:0", "--run", "rope-cfm"]
    command += ["--goal", str(goal), "--steps", "1", "--out", str(out)]
    fast = ["safety.velocity=0.8", "safety.acceleration=0.8", "backend.fps=10"]
    assert main([*command, *PATIENT, *fast]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    (episode,) = metrics["each"]
    assert episode["actions"] + episode["refused"] == 1 and not episode["fault"]
    assert (out / "video.mp4").exists()
