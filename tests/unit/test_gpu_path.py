"""What runs on a GPU, without one: no tensor is left on the CPU, and no solve waits for the GPU.

Every planner plans with every model and objective on tensors that claim to be on `cuda:0`. They
have no values: what a GPU computes, how fast, and whether CUDA captures it, is left to the tests
marked `gpu`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, VECTOR_QUANTIZE, FakeCuda
from small_models import POINTS, SIDE, VARIANTS, having, model
from toy_model import ToyModel, toy_spec
from toy_problem import HalfSpace, Scripted, at, build, every_planner, objective

import latentplan
from latentplan import registry
from latentplan.errors import ConfigError
from latentplan.planning import graph
from latentplan.planning.generative import GenerativePolicy
from latentplan.planning.mpc import MPC
from latentplan.planning.problem import Problem
from latentplan.planning.spaces import Box, Choices
from latentplan.protocols import ActionProposer
from latentplan.types import Goal

# Where the CPU may wait for the GPU, or copy to it inside a solve, and why.
ANSWER = "planning/solver.py:finish"
ACTION = "planning/mpc.py:act"
MISSED = "planning/execution.py:missed"
CLOCK = "planning/solver.py:_wait"
PLANNING = {
    ANSWER: "a plan whose cost is not finite raises; once a plan, after the solve",
    ACTION: "the robot needs the action; once an action",
    "planning/model_planner.py:evaluate": "the costs are returned as an array",
    MISSED: "whether to plan again, for `replan_threshold` alone",
    CLOCK: "for a deadline alone, whose clock is read between two rounds",
    "planning/noise.py:_tensor": "the basis of the noise, computed once per horizon",
    "models/videoworld/videoworld.py:_without_copies": "the number of frames that the transformer "
    "reads depends on them; once a proposal or subgoal of VideoWorld, which no CUDA graph captures",
}
SOLVE = ("planning/solver.py:solve",)

SEEN = {"rgb": np.full((SIDE, SIDE, 3), 40, np.uint8)}
SEEN["rgb"][10:20, 10:20] = 200  # what can be picked
SEEN["keypoints"] = np.zeros((POINTS, 2), np.float32)
GOAL = Goal(SEEN)

MODELS, VIDEO_MODELS = having("rollout"), having("log_prob")
ALIKE = [*VARIANTS, "jepa", "joint"]  # roll out as others do: those of one class, autoencoder
PLANNERS = sorted(registry.names("planner"))


def planner(name: str):
    """Return a planner with few candidates, and rounds of every kind."""
    rounds = 3 if name in ("beam", "hybrid") else 2
    return build(name, candidates=12, elites=4, horizon=2, iterations=rounds, sampled=1, width=4)


def loop(name, of, *, picks=False, aim="goal", constraints=(), **settings) -> MPC:
    """Return an MPC on the GPU that has a goal."""
    mpc = MPC(
        model(of, picks=picks).to(CUDA),
        planner(name),
        objective=registry.get("objective", aim)(),
        config=MPC.Config(**settings),
        constraints=constraints,
    )
    mpc.goal(GOAL)
    return mpc


def reads(cuda) -> list[str]:
    """Return where the CPU waited for the GPU, apart from VideoWorld's contexts."""
    return [place for place in cuda.waited if "videoworld" not in place]


@pytest.mark.parametrize(
    ("name", "of"),
    [
        *product(PLANNERS, [name for name in MODELS if name not in ALIKE]),
        *product(["beam"], ALIKE),
    ],
)
def test_a_plan_waits_for_its_answer_alone(name, of):
    with FakeCuda(PLANNING, inside=SOLVE)() as cuda:
        mpc = loop(name, of, propose="auto")
        for _ in range(2):  # without a warm start, and with one
            assert mpc.act(SEEN).shape == (4,)
        assert reads(cuda) == 2 * [ANSWER, ACTION]
        plan = mpc.plan
        assert all(each.device == CUDA for each in (plan.actions, plan.cost, plan.elites))


@pytest.mark.parametrize(
    ("aim", "of"),
    [
        (aim, of)
        for aim in sorted({*registry.names("objective")} - {"goal"})  # that of all other tests
        for of in {"subgoal": having("subgoal"), "text": having("text_vector")}.get(aim, MODELS)
    ],
)
def test_an_objective_never_waits(aim, of):
    with FakeCuda(PLANNING, inside=SOLVE)() as cuda:
        loop("cem", of, aim=aim).act(SEEN)
        assert reads(cuda) == [ANSWER, ACTION]


@pytest.mark.parametrize(
    ("settings", "waits"),
    [
        ({"picks": True}, 2 * [ANSWER, ACTION]),
        ({"action_rate_limit": (0.1,) * 4}, 2 * [ANSWER, ACTION]),
        ({"dtype": "bfloat16"}, 2 * [ANSWER, ACTION]),
        ({"dtype": "tf32"}, 2 * [ANSWER, ACTION]),
        ({"chunk": 2}, [ANSWER, ACTION, ACTION]),
        ({"constraints": [lambda z, a: z[..., 0].amax(-1)]}, 2 * [ANSWER, ACTION]),
        ({"chunk": 2, "replan_threshold": 0.5}, [ANSWER, ACTION, MISSED, ACTION]),
        ({"deadline_ms": 1e6}, 2 * [*3 * [CLOCK], ANSWER, ACTION]),
    ],
    ids=["picks", "rate", "bfloat16", "tf32", "chunk", "constraint", "replan", "deadline"],
)
def test_what_a_setting_of_mpc_waits_for(settings, waits):
    with FakeCuda(PLANNING, inside=SOLVE)() as cuda:
        mpc = loop("hybrid", "calibrated", propose=True, **settings)
        cuda.waited.clear()  # of a warm-up
        for _ in range(2):
            mpc.act(SEEN)
        assert reads(cuda) == waits
        mpc.sent(np.zeros(4, np.float32))
        mpc.evaluate(SEEN, np.zeros((5, 2, 4), np.float32))
        mpc.reset(seed=1)
        mpc.warm_up()


def batch(space: str):
    """Return a problem of three contexts with all that a problem can have."""
    device, draw = CUDA, partial(torch.randn, device=CUDA)
    toy = ToyModel(toy_spec(actions=3)).to(device)
    bounds = torch.full((3,), -1.0), torch.full((3,), 1.0)
    limits = {"rate": bounds[1], "previous": torch.zeros(3, 3)}
    choices = [torch.zeros(count, 2) for count in (1, 4, 2)]
    made = {
        "box": lambda: Box(*bounds, problems=3, device=device),
        "rate": lambda: Box(*bounds, problems=3, device=device, **limits),
        "choices": lambda: Choices(*bounds, choices=choices, device=device),
    }
    return Problem(
        at(draw(3, 1, 4), 3),
        toy.requires_grad_(False),
        objective(draw(3, 4)),
        made[space](),
        torch.Generator(device),
        2,
        draw(3, 2, 2, 3),
        (Scripted(draw(3, 5, 2, 3)),),
        (HalfSpace(draw(4), 0.5),),
    )


@every_planner
@pytest.mark.parametrize("space", ["box", "rate", "choices"])
def test_a_batch_with_constraints_never_waits(name, space):
    with FakeCuda(PLANNING, inside=SOLVE)() as cuda:
        _, found, elites = planner(name).solve(batch(space))
        assert cuda.waited == [] and found.violation.device == elites.device == CUDA


class Graph:
    """Stands in for `torch.cuda.CUDAGraph`, and records what is done with it."""

    made: list[Graph] = []

    def __init__(self):
        self.done = []
        self.made.append(self)

    def register_generator_state(self, generator):
        assert self.done == []
        self.done.append("register")

    def replay(self):
        self.done.append("replay")


class Stream:
    def __init__(self, device=None):
        assert device == CUDA

    def wait_stream(self, other):
        assert isinstance(other, Stream) and other is not self


@contextmanager
def capturing(cuda, patch):
    """Stand in for CUDA's streams and graphs; a capture allows neither waits nor copies."""

    @contextmanager
    def capture(captured, stream):
        assert isinstance(stream, Stream)  # torch's own may be on another GPU
        allowed, cuda.allowed = cuda.allowed, {}
        captured.done.append("capture")
        yield
        cuda.allowed = allowed

    def nothing(stream):
        return contextmanager(lambda: (yield))()

    Graph.made.clear()
    stands = {"CUDAGraph": Graph, "Stream": Stream, "graph": capture, "stream": nothing}
    for name, value in {**stands, "device": nothing, "current_stream": Stream}.items():
        patch.setattr(torch.cuda, name, value)
    yield


@every_planner
def test_a_solve_is_captured_once_and_replayed(name, monkeypatch):
    made = graph.Captured(planner(name))
    with FakeCuda(PLANNING, inside=SOLVE)() as cuda, capturing(cuda, monkeypatch):
        toy = batch("rate")
        for _ in range(3):
            new = replace(toy, context=replace(toy.context, latents=toy.context.latents + 1))
            made.solve(new)
        assert [each.done for each in Graph.made] == [["register", "capture", *3 * ["replay"]]]


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_mpc_captures_a_solve_with_and_one_without_a_warm_start(dtype, monkeypatch):
    with FakeCuda(PLANNING, inside=SOLVE)() as cuda, capturing(cuda, monkeypatch):
        mpc = loop("icem", "cfm", cuda_graph=True, dtype=dtype)
        for _ in range(4):
            mpc.act(SEEN)
        assert [each.done.count("replay") for each in Graph.made] == [1, 3]
        assert cuda.waited.count(ANSWER) == cuda.waited.count(ACTION) == 4


def test_a_tensor_on_the_cpu_is_refused_before_a_capture(monkeypatch):
    made = graph.Captured(planner("cem"))
    with FakeCuda(PLANNING, inside=SOLVE)() as cuda, capturing(cuda, monkeypatch):
        wall = HalfSpace(torch.zeros(4, device=CUDA), torch.tensor(0.5))  # runs without a graph
        toy = replace(batch("box"), constraints=(wall,))
        made.planner.solve(toy)
        with pytest.raises(ConfigError, match="MPC.cuda_graph: found tensors on cpu in the obj"):
            made.solve(toy)
    assert Graph.made == []


@pytest.mark.parametrize("run", ["rope-calibrated", "tabletop-videoworld"])
def test_a_shipped_checkpoint_is_loaded_onto_the_gpu(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with FakeCuda(PLANNING, inside=SOLVE)() as cuda:
        policy = latentplan.load(run, device="cuda")
        seen = policy.model.spec.observation
        blank = {key: np.zeros(array.shape, array.dtype) for key, array in seen.items()}
        policy.goal(blank)
        policy.act(blank)
        assert reads(cuda) == [ANSWER, ACTION]


@pytest.mark.parametrize("of", VIDEO_MODELS)
def test_video_models_and_generated_actions_stay_on_the_gpu(of):
    with FakeCuda({**PLANNING, **VECTOR_QUANTIZE})() as cuda:
        video = model(of).to(CUDA)
        shape = (2, video.stride, SIDE, SIDE, 3)
        frames = {"rgb": torch.zeros(shape, dtype=torch.uint8, device=CUDA)}
        assert video.log_prob(frames).device == CUDA
        drawn = video.sample(frames, 2, generator=torch.Generator(CUDA))
        assert drawn["rgb"].device == CUDA and not {*cuda.waited} - {*VECTOR_QUANTIZE}
        cuda.waited.clear()
        if isinstance(video, ActionProposer):
            policy = GenerativePolicy(video, GenerativePolicy.Config(candidates=3, horizon=2))
            policy.goal(GOAL)
            policy.act(SEEN)
            assert reads(cuda) == [ANSWER, ACTION]
