from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sighted import Sighted
from toy import ToyEnv

from latentplan import registry
from latentplan.api.evaluate import evaluate
from latentplan.api.fit import check_fit
from latentplan.cli import main
from latentplan.config import read_yaml
from latentplan.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    LatentplanError,
    UnknownName,
)
from latentplan.types import ArraySpec, Convention

QUICK = ["planner.candidates=16", "evaluation.length=4", "evaluation.states=2"]
FILES = {"metrics.json", "episodes.json", "report.html", "video.mp4", "config.yaml"}


@pytest.fixture(autouse=True)
def toy_is_registered(monkeypatch):
    monkeypatch.setitem(registry.BUILT_IN["env"], "toy", "toy:ToyEnv")


@pytest.fixture
def trained(untrained_run):
    return untrained_run


def test_everything_is_written_and_says_where_it_comes_from(trained, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    found = evaluate(trained, episodes=2, seed=3, out=out, overrides=QUICK)
    metrics = found.metrics
    assert found.files == {name: out / name for name in FILES} and len(found.trials) == 2
    assert capsys.readouterr() == ("", "")
    assert {p.name for p in out.iterdir()} == FILES
    assert all(p.stat().st_size > 0 for p in out.iterdir())
    values = json.loads((out / "metrics.json").read_text())
    assert {k: values[k] for k in metrics.to_json()} == metrics.to_json()
    assert (values["episodes"], values["seed"], values["env"]) == (2, 3, "toy")
    assert values["checkpoint"]["step"] == 7
    assert values["config"]["planner"]["candidates"] == 16
    assert read_yaml(out / "config.yaml")["config"] == values["config"]
    episodes = json.loads((out / "episodes.json").read_text())
    assert np.mean([e["distance"]["planner"][-1] for e in episodes]) == metrics.final


def test_the_command_prints_the_figures_and_the_report(trained, tmp_path, capsys):
    argv = ["plan", "--run", str(trained), "--episodes", "1", "--out", str(tmp_path / "out")]
    assert main([*argv, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in printed
    assert "oracle" in printed and "progress" in printed and "over 1 trial" in printed


def test_the_same_call_gives_the_same_figures_and_writes_nothing(
    trained, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = [evaluate(trained, episodes=1, overrides=QUICK).metrics for _ in "ab"]
    timed = {"act_ms_p50": 0.0, "act_ms_p90": 0.0}
    one, other = (str(replace(m, **timed)) for m in found)  # as text: a NaN is not itself
    assert one == other
    assert not list(tmp_path.iterdir())


def test_results_go_to_a_new_folder_by_default(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["plan", "--run", str(trained), "--episodes", "1", *QUICK]) == 0
    names = {p.name for p in (tmp_path / "runs").iterdir()}
    assert names == {f"plan-{trained.name}-1", f"plan-{trained.name}-2"}


def test_ctrl_c_reports_what_was_done(trained, tmp_path, monkeypatch):
    resets = iter(range(1000))
    reset = ToyEnv.reset

    def interrupted(self, **options):
        if next(resets) == 7:  # five resets a trial: in the middle of the second
            raise KeyboardInterrupt
        return reset(self, **options)

    monkeypatch.setattr(ToyEnv, "reset", interrupted)
    with pytest.raises(Interrupted) as caught:
        evaluate(trained, episodes=3, out=tmp_path, overrides=QUICK)
    assert caught.value.result.metrics.episodes == 1
    assert {p.name for p in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / "metrics.json").read_text())["episodes"] == 1


def test_ctrl_c_before_the_first_trial_writes_nothing(trained, tmp_path, monkeypatch):
    def interrupted(self, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(ToyEnv, "reset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, episodes=3, out=tmp_path / "a" / "b", overrides=QUICK)
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_fit_the_env_says_what_differs():
    env = ToyEnv().data_spec
    check_fit("run 'a'", env, env)
    camera = ArraySpec((32, 32, 3), "uint8")
    other = replace(env, observation={"rgb": camera, "depth": camera}, privileged=())
    with pytest.raises(CheckpointError) as caught:
        check_fit("run 'a'", replace(other, dt=0.1), env)
    text = str(caught.value)
    assert "observation 'rgb' is uint8 (64, 64, 3), need uint8 (32, 32, 3)" in text
    assert "observation 'depth' is missing" in text
    assert "dt is None s, need 0.1 s" in text
    assert "keypoints" not in text  # privileged: no model sees it
    with pytest.raises(CheckpointError, match=r"action.low is \(-1.0, .*need \(-2.0,"):
        check_fit("run 'a'", replace(env, action=replace(env.action, low=(-2.0,) * 4)), env)
    with pytest.raises(CheckpointError, match="'keypoints' is privileged there"):
        check_fit("run 'a'", replace(env, privileged=()), env)


def test_actions_of_another_convention_are_refused_by_what_differs():
    env = ToyEnv().data_spec

    def closing(gripper):
        convention = Convention("ee_delta", "euler_xyz", "world", 0.02, 0.05, gripper)
        return replace(env, action=replace(env.action, convention=convention))

    check_fit("run 'a'", closing("close_is_-1"), closing("close_is_-1"))
    found = r"env .*: action.convention.gripper is 'close_is_\+1', need 'close_is_-1'; use"
    with pytest.raises(CheckpointError, match=found):
        check_fit("run 'a'", closing("close_is_-1"), closing("close_is_+1"))
    with pytest.raises(CheckpointError, match="action.convention.control is None, need 'ee_delta'"):
        check_fit("run 'a'", closing("close_is_-1"), env)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"episodes": 0}, ConfigError, "^evaluate.episodes: 0 must be at least 1"),
        ({"seed": -1}, ConfigError, "^evaluate.seed: -1 must be at least 0"),
        ({"env": "toyy"}, UnknownName, "did you mean 'toy'"),
        ({"planner": "cen"}, UnknownName, "did you mean 'cem'"),
        ({"overrides": ["evaluation.lenght=3"]}, ConfigError, "did you mean 'length'"),
        ({"overrides": {"evaluation": {"states": -1}}}, ConfigError, "Goals.states: -1 must be"),
        ({"overrides": {"env.discs": ToyEnv}}, ConfigError, "overrides.env.discs: found <class"),
        ({"evaluation": "goal"}, UnknownName, "did you mean 'goals'"),
        ({"run": "no-such-run"}, CheckpointError, "no-such-run"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(trained, tmp_path, wrong, error, text):
    with pytest.raises(error, match=text):
        evaluate(wrong.pop("run", trained), out=tmp_path / "out", **wrong)
    assert not list(tmp_path.iterdir())


def test_an_out_that_is_a_file_is_an_error(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LatentplanError, match="file: the folder cannot be made"):
        evaluate(trained, out=tmp_path / "file", overrides=QUICK)
    assert (tmp_path / "file").read_text() == "mine"


class Mine(ToyEnv):
    """An env that is registered nowhere."""


def test_an_object_is_evaluated_in_a_class_or_an_object(tmp_path, capsys):
    seen = []
    quick = {"evaluation": {"length": 4, "states": 2}}
    found = evaluate(Sighted(), env=Mine, episodes=2, overrides=quick, on_progress=seen.append)
    again = evaluate(Sighted(), env=Mine(), episodes=2, overrides=quick, out=tmp_path / "out")
    assert found.metrics.final == again.metrics.final < found.metrics.random_final
    assert found.settings["env"].endswith("Mine") and found.settings["policy"] == "sighted:Sighted"
    assert [(p.done, p.total) for p in seen] == [(1, 2), (2, 2)]
    assert "progress" in found.metrics.table().notes[0]
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES
    assert capsys.readouterr() == ("", "")


def test_a_policy_without_a_model_is_evaluated_by_its_name_or_class():
    quick = {"evaluation": {"length": 4, "states": 2}}
    named = evaluate(policy="oracle", env=ToyEnv, episodes=2, overrides=quick)
    assert named.metrics.final == named.metrics.oracle_final
    assert np.isnan(named.metrics.spearman) and named.metrics.to_json()["spearman"] is None
    made = evaluate(registry.get("policy", "oracle"), env=Mine, episodes=2, overrides=quick)
    assert made.metrics.final == named.metrics.final
    with pytest.raises(ConfigError, match="evaluate.run: policy 'mpc' needs a run"):
        evaluate(policy="mpc", env=ToyEnv)
    with pytest.raises(ConfigError, match="evaluate.run: found neither a run nor a policy"):
        evaluate(env=ToyEnv)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({}, "evaluate.env: found None"),
        ({"env": ToyEnv, "planner": "cem"}, "evaluate.planner: only a run takes"),
    ],
)
def test_an_object_needs_an_env_and_has_its_planner(wrong, text):
    with pytest.raises(ConfigError, match=text):
        evaluate(Sighted(), **wrong)


def test_an_env_that_breaks_leaves_no_folder(tmp_path):
    class Broken(ToyEnv):
        def reset(self, **options):
            raise ConfigError("Broken.reset: no")

    with pytest.raises(ConfigError, match="Broken.reset"):
        evaluate(Sighted(), env=Broken, out=tmp_path / "runs" / "out")
    assert not list(tmp_path.iterdir())
