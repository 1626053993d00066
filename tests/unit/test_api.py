"""What users import: lazily, in silence, and by class or object as well as by name."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import ToyEnv

import latentplan
from latentplan.api.choice import as_overrides, choose
from latentplan.errors import ConfigError, ContractError, UnknownName
from latentplan.exploration.box import Box


def test_editors_see_every_function_before_it_is_imported() -> None:
    program = "import latentplan, sys; print(dir(latentplan)); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    names, numpy = done.stdout.splitlines()
    assert numpy == "False", done.stderr
    assert all(repr(name) in names for name in latentplan.__all__)
    assert all(callable(getattr(latentplan, name)) for name in latentplan.MODULES)
    with pytest.raises(AttributeError, match="has no attribute 'colect'"):
        latentplan.colect  # noqa: B018


def test_an_arm_is_connected_without_a_word_and_without_a_signal_handler(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with latentplan.connect("sim", overrides={"supervisor.overruns": 100}) as arm:
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        start = arm.observe()["q"]
        for _ in range(3):
            sent = arm.send(np.array([0.3, 0, 0, 0, 0, 0, 0, 1.0]))
        assert 0 < sent[0] <= 0.3 and arm.observe()["q"][0] > start[0]
    assert capsys.readouterr() == ("", "")
    for wrong, text in (
        ({"backend": "serial"}, "no backend named 'serial'"),
        ({"robot": "arm7"}, "no robot named 'arm7'"),
        ({"overrides": ["speed=3"]}, "no key 'speed'"),
    ):
        with pytest.raises((UnknownName, ConfigError), match=text), latentplan.connect(**wrong):
            pass


@pytest.mark.parametrize(
    ("given", "strings"),
    [
        (["a=1", "b.c=x"], ["a=1", "b.c=x"]),
        ({"length": 3}, ["length=3"]),
        ({"env": {"links": 15, "noise": {"std": 0.5}}}, ["env.links=15", "env.noise.std=0.5"]),
        ({"a": [1, 2], "b": None, "c": True}, ["a=[1, 2]", "b=null", "c=true"]),
        ({"a.b": "x: y"}, ['a.b="x: y"']),
    ],
)
def test_overrides_are_strings_or_a_mapping(given: Any, strings: list[str]) -> None:
    assert as_overrides(given) == strings


def test_one_string_is_no_list_of_overrides() -> None:
    with pytest.raises(ConfigError, match="overrides: found the string 'length=3', need a list"):
        as_overrides("length=3")


def test_a_choice_is_a_name_a_class_or_an_object() -> None:
    for given in ("box", Box, "latentplan.exploration.box:Box", Box(ToyEnv().data_spec)):
        found = choose("policy", given)
        assert (found.name, found.make) == ("box", Box)
    mine = choose("env", ToyEnv(ToyEnv.Config(discs=2)))
    assert mine.name == "toy:ToyEnv" and mine.to_values(None)["discs"] == 2
    with pytest.raises(UnknownName, match="no env named 'rpoe'; did you mean 'rope'"):
        choose("env", "rpoe")


def test_what_is_no_env_is_told_in_one_line_and_no_folder_is_made(tmp_path: Path) -> None:
    class Half:
        def reset(self, **options: Any) -> None:
            """Do nothing."""

    for given in (Half, Half()):
        with pytest.raises(ContractError, match="env .*Half") as caught:
            latentplan.collect(given, out=tmp_path / "runs" / "a.zarr", episodes=1)
        assert "\n" not in str(caught.value)
        with pytest.raises(ContractError, match="env .*Half"):
            latentplan.evaluate(policy="oracle", env=given, out=tmp_path / "runs" / "out")
    assert not list(tmp_path.iterdir())
