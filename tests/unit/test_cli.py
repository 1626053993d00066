"""The command line: a user's mistake is one line that names the nearest, and exit code 2."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from processes import Command
from toy import ToyEnv

from latentplan import cli, registry
from latentplan.api import doctor, names
from latentplan.cli import main
from latentplan.commands import list as listing
from latentplan.commands import progress
from latentplan.training import checkpoint


@pytest.mark.parametrize("command", [*cli.COMMANDS])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"Example: latentplan {command}" in " ".join(capsys.readouterr().out.split())


def test_the_help_of_train_says_where_its_settings_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    assert "latentplan config model MODEL" in capsys.readouterr().out


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f" {command} " in shown for command in cli.COMMANDS)


COLLECT = ["--episodes", "1", "--workers", "0", "--out", "data.zarr"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["colect"], ["'colect'", "'collect'"]),
        (["collect"], ["ENV"]),
        (["collect", "rope", "--episode", "3"], ["--episode", "--episodes"]),
        (["collect", "rpoe", *COLLECT], ["no env named 'rpoe'", "did you mean 'rope'", "known:"]),
        (["collect", "rope", *COLLECT, "--policy", "rand"], ["'rand'", "'random'"]),
        (["collect", "rope", *COLLECT, "link=3"], ["no key 'link'", "'links'", "env.links"]),
        (["collect", "rope", *COLLECT, "links=a"], ["Rope.links", "found 'a'", "int"]),
        (["collect", "rope", *COLLECT, "links=1"], ["Rope.links", "1 ", "[2, "]),
        (["collect", "rope", *COLLECT, "links"], ["'links'", "key=value"]),
        (["collect", "rope", "--episodes", "x", "--out", "a"], ["--episodes", "'x'", "whole"]),
        (["collect", "rope", "--episodes", "0", "--out", "a"], ["--episodes", "0", "at least 1"]),
        (["train", "cmf", "--data", "a", "--run", "b"], ["no model named 'cmf'", "'cfm'"]),
        (["train", "cfm", "--data", "absent.zarr", "--run", "b"], ["absent.zarr"]),
        (["plan", "--run", "absent"], ["absent", "shipped"]),
        (["plan", "--run", "absent", "--planner", "cme"], ["no planner named 'cme'", "'cem'"]),
        (["list", "modles"], ["no kind named 'modles'", "'models'"]),
        (["collect", "rope", *COLLECT, "--ray", "nowhere"], ["--ray", "'nowhere'", "HOST:PORT"]),
        (["collect", "rope", *COLLECT, "--policy", "box", "colour=9"], ["Box.colour", "[0.0, 3"]),
        (["show", "absent.zarr"], ["absent.zarr"]),
        (["show", "absent"], ["absent"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    argv: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert all(word in told.err for word in words), told.err
    assert not list(tmp_path.iterdir())


def test_no_error_of_the_library_names_an_option() -> None:
    """What a command calls a parameter is its own matter; `cli.as_options` translates."""
    group = typer.main.get_command(cli.app)
    options = {o for c in group.commands.values() for p in c.params for o in p.opts}  # type: ignore[attr-defined]
    known = re.compile("|".join(rf"{re.escape(o)}(?![\w-])" for o in options if o[:2] == "--"))
    package, found = Path(cli.__file__).parent, []
    assert known.search("give --seed 1") and not known.search("ray start --head")
    files = [Path(top, n) for top, _, names in os.walk(package, followlinks=True) for n in names]
    for file in files:
        if file.suffix != ".py" or "commands" in file.parts or file.name == "cli.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            checks = isinstance(node, ast.Call) and "check_range" in ast.unparse(node.func)
            if isinstance(node, ast.Raise) or checks:
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                said = "".join(text for text in texts if isinstance(text, str))
                if known.search(said):
                    found.append(f"{file.relative_to(package)}:{node.lineno}: {said}")
    assert not found


def test_an_error_of_the_library_is_told_in_the_commands_words() -> None:
    for message, command, told in (
        ("collect.episodes: 0 must be", "collect", "--episodes: 0 must be"),
        ("evaluate.goal_text: is for", "plan", "--goal-text: is for"),
        ("robot.run: found neither", "record", "--run: found neither"),
        ("Rope.links: 1 is", "collect", "Rope.links: 1 is"),
        ("env.links: the store has 3", "collect", "env.links: the store has 3"),
    ):
        assert cli.as_options(message, command=command) == told


def test_our_own_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(section: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(names, "entries", broken)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


def test_a_full_disk_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(section: str) -> None:
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")

    monkeypatch.setattr(names, "entries", full)
    assert main(["list"]) == 2
    assert "the disk is full" in capsys.readouterr().err


def test_the_exit_code_reaches_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "latentplan", "list", "modles"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_keeps_what_was_done(tmp_path: Path) -> None:
    out = tmp_path / "data.zarr"
    argv = ["collect", "rope", "--episodes", "100000", "--out", str(out), "--workers", "1"]
    running = Command(tmp_path, *argv)
    deadline = time.monotonic() + 60
    while not list(out.glob(".pending/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    code, _, told = running.end(within=30)
    assert code == 130, told
    assert "Traceback" not in told
    assert "interrupted; what was done is kept" in told
    assert main(["show", str(out), "--out", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_show_draws_what_a_store_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data.zarr"
    assert main(["collect", "rope", "--episodes", "2", "--out", str(out), "--workers", "1"]) == 0
    capsys.readouterr()
    assert main(["show", str(out)]) == 0
    told = capsys.readouterr().out
    assert "2 episodes, 40 transitions" in told
    assert "rgb (64, 64, 3) uint8" in told and "privileged" in told
    from PIL import Image

    sheet = Image.open(tmp_path / "data.png")
    assert sheet.size[1] > 2 * (128 + 2) + 100  # two episodes, and histograms


def test_show_draws_the_curves_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = registry.get("model", "cfm")
    model = build(ToyEnv().data_spec, build.Config(latent=4, channels=(8, 8, 8, 8)))
    figures = {"held_out/loss": 1.25}
    checkpoint.save(tmp_path / "best.safetensors", model, name="cfm", step=7, metrics=figures)
    assert main(["show", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "step         7" in told and "held_out/loss = 1.25" in told
    assert "config       latent = 4" in told and not (tmp_path / "curves.png").exists()
    points = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "held_out/loss": 2.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points))
    assert main(["show", str(tmp_path / "best.safetensors")]) == 0
    from PIL import Image

    assert np.asarray(Image.open(tmp_path / "curves.png"))[..., :3].std() > 1


def test_the_help_of_list_names_all_kinds() -> None:
    assert list(listing.KINDS) == names.sections()
    assert set(names.KINDS.values()) == set(registry.BUILT_IN)


@pytest.mark.parametrize("kind", ["envs", "models", "planners", "objectives", "policies"])
def test_list_says_what_each_name_is(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", kind]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == kind
    assert lines and all(len(line.split(maxsplit=1)[1]) > 10 for line in lines)


def test_doctor_says_that_the_core_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    states = {finding["name"]: finding["state"] for finding in told["findings"]}
    assert told["works"] and states["rendering"] == states["torch"] == "ok"


def test_doctor_says_how_to_mend_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = doctor.version

    def without_mujoco(name: str) -> str:
        return "4.0.0" if name == "mujoco" else installed(name)

    monkeypatch.setattr(doctor, "version", without_mujoco)
    assert main(["doctor"]) == 2
    told = capsys.readouterr().out
    assert "4.0.0, needs <3.10,>=3.3.7" in told
    assert '-> pip install "mujoco<3.10,>=3.3.7"' in told


def test_doctor_without_opengl_says_what_to_type() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "latentplan.cli", "doctor"],
        env={**os.environ, "MUJOCO_GL": "glfw"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "needs a screen; set egl or osmesa" in done.stdout


def test_progress_off_a_terminal_is_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    with progress.track(12, "train", "steps", done=2) as bar:
        for loss in range(10):
            bar.advance(loss=float(loss))
    lines = capsys.readouterr().err.splitlines()
    assert 2 < len(lines) < 10
    assert all(line.startswith("train: ") and "/12 steps, " in line for line in lines)
    assert "left, loss" in lines[0] and lines[-1].startswith("train: 12/12 steps")
    assert not any("\x1b" in line for line in lines)


def test_progress_tells_what_was_done_when_it_is_interrupted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt), progress.track(5, "plan", "trials") as bar:
        bar.advance(3)
        raise KeyboardInterrupt
    assert capsys.readouterr().err.startswith("plan: 3/5 trials")
