from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from toy import ToyEnv

import latentplan
from latentplan import registry
from latentplan.errors import CheckpointError, ConfigError, MissingDependency, UnknownName
from latentplan.planning.mpc import MPC
from latentplan.training import checkpoint


@pytest.fixture
def run(untrained_run):
    return untrained_run


def act(planner: MPC) -> np.ndarray:
    env = ToyEnv()
    goal, _ = env.reset(seed=1)
    start, _ = env.reset(seed=0)
    planner.goal(goal)
    return planner.act(start)


@pytest.mark.parametrize("name", sorted(registry.names("planner")))
def test_a_run_becomes_a_planner(run, name):
    planner = latentplan.load(run, planner=name)
    assert isinstance(planner, MPC)
    action = act(planner)
    assert action.shape == (4,) and (np.abs(action) <= 1).all()
    assert not planner.model.training
    assert np.array_equal(action, act(latentplan.load(run / "best.safetensors", planner=name)))
    assert not np.array_equal(action, act(latentplan.load(run, planner=name, seed=1)))


def test_every_section_can_be_set(run):
    planner = latentplan.load(
        run,
        overrides=[
            "candidates=64",
            "planner.horizon=3",
            "effort=[0,0,1,1]",
            "chunk=2",
            "hold=false",
        ],
    )
    assert planner.planner.config.candidates == 64 and planner.planner.config.horizon == 3
    assert not planner.planner.config.hold
    assert planner.config.chunk == 2
    act(planner)
    assert planner.plan.actions.shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"planner": "cme"}, UnknownName, "no planner named 'cme'; did you mean 'cem'?"),
        ({"objective": "gaol"}, UnknownName, "no objective named 'gaol'; did you mean 'goal'?"),
        ({"overrides": ["elitse=3"]}, ConfigError, "did you mean '(planner.)?elites'"),
        ({"overrides": ["elites=999"]}, ConfigError, r"CEM.elites: 999 is not within \[1, 256\]"),
        ({"overrides": ["candidates=many"]}, ConfigError, "CEM.candidates: found 'many'"),
        ({"overrides": ["chunk=0"]}, ConfigError, "MPC.chunk: 0 must be at least 1"),
        ({"device": "tpu"}, ConfigError, "device: found 'tpu'"),
    ],
)
def test_a_mistake_is_one_clear_error(run, settings, error, message):
    with pytest.raises(error, match=message) as caught:
        latentplan.load(run, **settings)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        latentplan.load(tmp_path / "nowhere")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_is_never_replaced_by_the_cpu(run):
    with pytest.raises(MissingDependency, match="'cuda' is not there"):
        latentplan.load(run, device="cuda")


def test_importing_the_package_is_light():
    code = (
        "import sys, latentplan; assert 'load' in latentplan.__all__; "
        "print([m for m in ('torch', 'mujoco', 'zarr', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_name_that_the_package_does_not_have():
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        latentplan.laod  # noqa: B018


def test_constraints_and_proposals_reach_the_planner(untrained_run):
    seen = []

    class Script:
        def sample(self, context, count, *, horizon, generator):
            seen.append(count)
            return torch.zeros(len(context.latents), count, horizon, 4)

    def never(latents, actions):
        return actions[..., 0].amax(-1) + 2

    env = ToyEnv()
    goal, _ = env.reset(seed=0)
    planner = latentplan.load(untrained_run, proposals=[Script()], constraints=[never])
    planner.goal(goal)
    planner.act(goal)
    assert seen and planner.plan.violation.item() > 0


def test_a_class_that_is_not_registered_is_passed_to_load(tmp_path):
    cfm = registry.get("model", "cfm")

    class Mine(cfm):
        pass

    torch.manual_seed(0)
    model = Mine(ToyEnv().data_spec, cfm.Config(latent=4, channels=(8, 8, 8, 8)))
    file = tmp_path / "best.safetensors"
    checkpoint.save(file, model, name="notebook:Mine", step=1, metrics={})
    with pytest.raises(CheckpointError, match="pass its class"):
        latentplan.load(tmp_path)
    planner = latentplan.load(tmp_path, model=Mine)
    assert type(planner.model) is Mine
    assert (np.abs(act(planner)) <= 1).all()
    pair = latentplan.load([tmp_path, file], model=Mine)
    assert [type(each) for each in pair.model.members] == [Mine, Mine]
    with pytest.raises(CheckpointError):
        latentplan.load(tmp_path, model=registry.get("model", "videogpt"))
