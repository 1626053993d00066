"""`latentplan check`: one line a check, exit code 2 where a promise is broken."""

import sys

import pytest
import robomimic_writer

from latentplan.cli import main

ENV = '''
from toy import ToyEnv

class Kept(ToyEnv):
    def step(self, action):
        from latentplan.errors import ShapeError
        if len(action) != 4 or not (abs(action) <= 1).all():
            raise ShapeError("Kept.action")
        return super().step(action)

class Loose(ToyEnv):
    """Clips actions that are out of bounds."""

class Half:
    def __init__(self, config=None): ...
    def reset(self, *, seed=None, options=None): ...
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_envs.py").write_text(ENV)
    yield
    sys.modules.pop("own_envs", None)


def test_a_class_of_the_folder_that_keeps_all(capsys):
    assert main(["check", "env", "own_envs:Kept", "discs=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ok      a snapshot restores the state bit for bit" in lines
    assert lines[-1].startswith("env own_envs:Kept: ") and " 0 failed" in lines[-1]


def test_a_broken_promise_is_one_line_and_exit_2(capsys):
    assert main(["check", "env", "own_envs:Loose"]) == 2
    (failed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert failed == (
        "FAILED  an action that is not finite, too short or out of bounds raises ShapeError: "
        "found a NaN is accepted, need ShapeError"
    )


@pytest.mark.parametrize(
    "kind, name",
    [
        ("model", "cfm"),
        ("objective", "goal"),
        ("planner", "cem_lookahead"),  # a preset that sets an objective as well
        ("policy", "random"),
        ("tokenizer", "vqvae"),
        ("evaluation", "goals"),
    ],
)
def test_every_kind_can_be_checked(kind, name, capsys):
    assert main(["check", kind, name]) == 0
    assert " 0 failed, " in capsys.readouterr().out.splitlines()[-1]


def test_a_source_is_checked_on_data(tmp_path, capsys):
    data = robomimic_writer.write(tmp_path / "a=b.hdf5")
    assert main(["check", "source", "robomimic", str(data)]) == 0
    assert " 0 failed, " in capsys.readouterr().out.splitlines()[-1]


def test_an_evaluation_is_checked_in_an_env(capsys):
    assert main(["check", "evaluation", "calvin-lh", "lamps:Lamps", "limit=2", "chains=2"]) == 0
    assert capsys.readouterr().out.endswith("7 ok, 0 failed, 0 skipped\n")
    assert main(["check", "evaluation", "goals", "own_envs:Loose", "length=2", "states=0"]) == 0


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["env", "own_envs:Half"], "has no methods step(), snapshot(), restore(), distance()"),
        (["env", "own_envs:None"], "module 'own_envs' has no 'None'"),
        (["env", "nowhere:Env"], "no module 'nowhere' is installed or in this folder"),
        (["planner", "own_envs:Half"], "planner 'own_envs:Half': has no Config"),
        (["env", "ropes"], "did you mean 'rope'"),
        (["envs", "rope"], "did you mean 'env'"),
        (["env", "own_envs:Kept", "disks=2"], "did you mean 'discs'"),
        (["source", "robomimic"], "source 'robomimic': found no data; name the path of some"),
        (["source", "robomimics", "x"], "did you mean 'robomimic'"),
        (["source", "own_envs:Half", "x"], "source 'own_envs:Half': has no Config"),
        (["evaluation", "goal"], "did you mean 'goals'"),
        (["evaluation", "goals", "ropes"], "did you mean 'rope'"),
        (["evaluation", "own_envs:Half"], "evaluation 'own_envs:Half': has no Config"),
    ],
)
def test_what_cannot_be_checked_is_one_line(arguments, told, capsys):
    assert main(["check", *arguments]) == 2
    seen = capsys.readouterr()
    assert told in seen.err and seen.err.count("\n") == 1 and seen.out == ""
