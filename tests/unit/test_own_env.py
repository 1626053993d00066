"""An env of somebody else, a file in the current folder: collected with, and refused in a line."""

import sys

import pytest

from latentplan.cli import main

ENV = '''
import toy

class Pusher(toy.ToyEnv):
    pass

class Half:
    def __init__(self, config=None):
        self.data_spec = Pusher().data_spec
    def reset(self, *, seed=None, options=None): ...
    def step(self, action): ...
    def distance(self, observation, goal): ...
    def oracle(self, observation, goal): ...
    def close(self): ...

class Blind(Pusher):
    def __init__(self, config=None):
        pass

class Lazy:
    def __init__(self, spec, config=None): ...
    def act(self, observation): ...
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_env.py").write_text(ENV)
    yield tmp_path
    sys.modules.pop("own_env", None)


def collect(env, *options):
    argv = ["collect", env, "--episodes", "2", "--out", "a.zarr", "--workers", "0", *options]
    return main([*argv, "length=3"])


def test_it_is_collected_with_by_module_and_class(folder, capsys):
    assert collect("own_env:Pusher", "discs=2") == 0
    assert "a.zarr: 2 episodes, 6 transitions" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["own_env:Half"], "has no methods snapshot(), restore() (protocols.Env): add them"),
        (["own_env:Blind"], "has no attribute data_spec (protocols.Env): set it"),
        (["own_env:Pusher", "--policy", "own_env:Lazy"], "has no method reset() (protocols."),
        (["own_envs:Pusher"], "no module 'own_envs' is installed or in this folder"),
        (["own_env:Pusher", "disks=2"], "no key 'disks'; did you mean 'discs'?"),
    ],
)
def test_what_is_missing_is_one_line_and_leaves_no_store(folder, arguments, told, capsys):
    assert collect(*arguments) == 2
    seen = capsys.readouterr()
    assert told in seen.err and seen.err.count("\n") == 1
    assert not (folder / "a.zarr").exists()
