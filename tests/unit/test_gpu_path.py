"""What runs on a GPU, without one: no tensor is left on the CPU, and no solve waits for the GPU.

Every planner, model, objective and learner runs on tensors that claim to be on `cuda:0`. They have
no values: what a GPU computes, how fast, and whether CUDA captures it, is left to the tests marked
`gpu`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, FakeCuda, FakeGenerator, OtherDevice, Waits
from toy_model import ToyModel, toy_spec
from toy_problem import HalfSpace, Scripted, at, build, every_planner, objective
from trainings import small

from latentplan import registry
from latentplan.conformance.suite import subject
from latentplan.errors import ConfigError
from latentplan.models.ensemble import Ensemble
from latentplan.planning import graph
from latentplan.planning.generative import GenerativePolicy
from latentplan.planning.mpc import MPC
from latentplan.planning.problem import Problem
from latentplan.planning.spaces import Box, Choices
from latentplan.protocols import ActionProposer, Staged
from latentplan.training.heldout import for_model
from latentplan.training.state import State
from latentplan.types import (
    ActionSpec,
    ArraySpec,
    Batch,
    Convention,
    Derived,
    Episode,
    Goal,
    Label,
    PickSpec,
    PlanarSpec,
    Spec,
    Stage,
)

# Where the CPU may wait for the GPU, or copy to it inside a solve, and why.
ANSWER = "planning/solver.py:finish"
ACTION = "planning/mpc.py:act"
MISSED = "planning/model_planner.py:missed"
CLOCK = "planning/solver.py:_wait"
PLANNING = {
    ANSWER: "a plan whose cost is not finite raises; once a plan, after the solve",
    ACTION: "the robot needs the action; once an action",
    "planning/mpc.py:evaluate": "the costs are returned as an array",
    MISSED: "whether to plan again, for `replan_threshold` alone",
    CLOCK: "for a deadline alone, whose clock is read between two rounds",
    "planning/noise.py:_tensor": "the basis of the noise, computed once per horizon",
    "models/videoworld/videoworld.py:_without_copies": "the number of frames that the transformer "
    "reads depends on them; once a proposal or subgoal of VideoWorld, which no CUDA graph captures",
}
QUANTIZED = "tokenizers/video_vqvae.py:_quantized"
TRAINING = {
    "nn/quantizer.py:forward": "VectorQuantize reads whether its code book is initialised, and "
    "whether codes are dead; finite scalar quantization, the default, does not",
    QUANTIZED: "the same",
    "tokenizers/video_vqvae.py:forward": "the momentum of the first ten batches",
}
SOLVE = ("planning/solver.py:solve",)

PICK = PickSpec("rgb", (150, 150, 150))
ARM = Convention("ee_delta", rotation="rotvec", frame="base", gripper="close_is_-1")
BOX = Spec(
    {"rgb": ArraySpec((64, 64, 3), "uint8")},
    ActionSpec((-1.0,) * 4, (1.0,) * 4),
    planar=PlanarSpec("rgb", ((0, 1), (2, 3))),
    tasks=("push", "pull"),
)
SEEN = {"rgb": np.full((64, 64, 3), 40, np.uint8)}
SEEN["rgb"][20:30, 20:30] = 200  # what can be picked
GOAL = Goal(SEEN)

SETTINGS = {
    "videoworld": [
        *("model.dynamics.width=16", "model.dynamics.layers=1", "model.inverse.frame_encoder=8"),
        *("model.transformer.width=16", "model.transformer.frame_encoder=8"),
    ],
    "calibrated": [
        *("model.dynamics.hidden=[8]", "model.dynamics.members=2", "model.inverse.hidden=[8]"),
    ],
}
VARIANTS = {  # of the registered models
    "cfm, four views": ("cfm", ["model.views=4"]),
    "cfm_paper": ("cfm", ["model.dynamics=locally_linear", "model.negatives=current"]),
    "videoworld, frames": ("videoworld", ["model.inverse.reads=frames"]),
    "videoworld, sentences": (
        "videoworld",
        ["model.language=true", "model.transformer.tasks=[push,pull]"],
    ),
}
NAMES = [*sorted(registry.names("model")), *VARIANTS, "ensemble"]
PLANNERS = sorted(registry.names("planner"))


def having(method: str) -> list[str]:
    """Return the names of the models with a method."""
    made = {name: registry.get("model", VARIANTS.get(name, (name,))[0]) for name in NAMES[:-1]}
    found = [name for name, make in {**made, "ensemble": Ensemble}.items() if hasattr(make, method)]
    return found


MODELS, VIDEO_MODELS = having("rollout"), having("log_prob")


@cache
def model(name: str, *, picks: bool = False):
    """Return a small model, on the CPU until it is moved to the GPU."""
    if name == "ensemble":
        return Ensemble([model.__wrapped__("cfm", picks=picks) for _ in range(2)])
    registered, settings = VARIANTS.get(name, (name, []))
    chosen = [*small(registered), *SETTINGS.get(registered, ()), *settings]
    spec = replace(BOX, pick=PICK) if picks else BOX
    return subject("model", registered, overrides=chosen).build(spec).eval().requires_grad_(False)


def planner(name: str):
    """Return a planner with few candidates, and rounds of every kind."""
    return build(name, candidates=12, elites=4, horizon=2, iterations=3, sampled=1, width=4)


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
        *product(PLANNERS, [name for name in MODELS if name not in VARIANTS]),
        *product(["beam"], [name for name in MODELS if name in VARIANTS]),
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
        for aim in sorted(registry.names("objective"))
        for of in (MODELS if aim != "subgoal" else having("subgoal"))
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


@pytest.mark.parametrize("of", VIDEO_MODELS)
def test_video_models_and_generated_actions_stay_on_the_gpu(of):
    with FakeCuda({**PLANNING, **TRAINING})() as cuda:
        video = model(of).to(CUDA)
        frames = {"rgb": torch.zeros(2, video.stride, 64, 64, 3, dtype=torch.uint8, device=CUDA)}
        assert video.log_prob(frames).device == CUDA
        drawn = video.sample(frames, 2, generator=torch.Generator(CUDA))
        assert drawn["rgb"].device == CUDA and not {*cuda.waited} - {QUANTIZED}
        cuda.waited.clear()
        if isinstance(video, ActionProposer):
            policy = GenerativePolicy(video, GenerativePolicy.Config(candidates=3, horizon=2))
            policy.goal(GOAL)
            policy.act(SEEN)
            assert reads(cuda) == [ANSWER, ACTION]


LEARNERS = {
    "cfm": ("model", "cfm", []),
    "cfm_paper": ("model", *VARIANTS["cfm_paper"]),
    "vqvae": ("tokenizer", "vqvae", ["tokenizer.background=true"]),
    "vqvae, vq": ("tokenizer", "vqvae", ["tokenizer.quantizer=vq"]),
    "video_vqvae": ("tokenizer", "video_vqvae", []),
    "calibrated": ("model", "calibrated", []),
    "videoworld": ("model", "videoworld", ["model.ldm.whiten=true", "model.ldm.motion=1"]),
    "videoworld, frames": ("model", *VARIANTS["videoworld, frames"]),
    "videogpt": ("model", "videogpt", ["model.prior.tasks=true", "model.prior.hide=0.3"]),
}


VECTOR_QUANTIZED = {"vqvae, vq", "video_vqvae", "videogpt"}


def declared(kind, name, settings):
    """Yield the steps of a training, each with its networks so far and the spec of its data."""
    make = registry.get(kind, name)
    chosen = [*(small(name) if kind == "model" else ()), *SETTINGS.get(name, ()), *settings]
    tested = subject(kind, name, overrides=chosen)
    if not issubclass(make, Staged):
        yield Stage(name, lambda spec, parts: tested.build(spec)), {}, BOX
        return
    spec = replace(BOX, action=replace(BOX.action, convention=ARM))
    labels = [Label(f"{task} it", task) for task in BOX.tasks]
    specs, parts = {"": spec}, {}
    given = {"training": make.Training(), "spec": spec, "labels": labels}
    for step in make.stages(tested.config, **given):
        yield step, parts, specs[step.data]
        if isinstance(step, Derived):
            specs[step.name] = step.spec(specs[step.data], parts)
        elif step.name not in parts:
            parts[step.name] = step.build(specs[step.data], parts)


def windows(learner, size: int = 4) -> Batch:
    """Return windows of zeros on the CPU with the fields that the learner reads."""
    length = max(learner.window, 2)
    optional = {
        "rewards": torch.zeros(size, length - 1),
        "task": torch.zeros(size, length, dtype=torch.int64),
        "segments": torch.zeros(size, length, dtype=torch.int64),
    }
    seen = {
        key: torch.zeros(size, length, *array.shape, dtype=getattr(torch, array.dtype))
        for key, array in learner.spec.observation.items()
    }
    actions = torch.zeros(size, length - 1, learner.spec.action.size)
    return Batch(seen, actions, **{key: optional[key] for key in learner.reads})


def test_every_registered_learner_is_trained_here():
    names = {(kind, name) for kind, name, _ in LEARNERS.values()}
    built_in = {(kind, n) for kind in ("model", "tokenizer") for n in registry.BUILT_IN[kind]}
    assert names == built_in


@pytest.mark.parametrize("name", LEARNERS)
def test_a_training_step_never_waits(name):
    for step, parts, spec in declared(*LEARNERS[name]):
        if isinstance(step, Derived):
            continue
        learner = parts[step.name] = step.build(spec, parts)
        inside = type(learner).__module__.removeprefix("latentplan.").replace(".", "/")
        with FakeCuda(TRAINING, inside=(f"{inside}.py:loss",))() as cuda:
            learner.train().to(CUDA)
            weights = [each for each in learner.parameters() if each.requires_grad]
            optimizer = torch.optim.AdamW(weights, fused=True)
            curves = State(learner, optimizer=optimizer, ema=None)
            for _ in range(2):
                loss = learner.loss(for_model(windows(learner), learner))
                optimizer.zero_grad()
                loss.total.backward()
                norm = torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                curves.add({**loss.parts, "loss": loss.total, "grad_norm": norm})
            assert all(each.device == CUDA for each in loss.parts.values()), step.name
            assert cuda.waited == [] or name in VECTOR_QUANTIZED, step.name


STORES = {  # what is written comes from the CPU
    "models/latents.py:latents_of": "the latents",
    "models/videogpt/clips.py:clips_of": "the tokens",
    "models/videoworld/stages.py:tokenised": "the tokens and codes",
    "models/videoworld/stages.py:_states": "the states",
    QUANTIZED: TRAINING["nn/quantizer.py:forward"],
}


@pytest.mark.parametrize("name", ["calibrated", "videogpt", "videoworld"])
def test_a_store_is_derived_on_the_gpu_and_written_from_the_cpu(name):
    stores = {"": [recorded()]}
    for step, parts, _ in declared(*LEARNERS[name]):
        if not isinstance(step, Derived):
            continue
        with FakeCuda(STORES)():
            there = {key: part.eval().to(CUDA) for key, part in parts.items()}
            stores[step.name] = list(step.make(stores[step.data], there))
        for episode in stores[step.name]:
            assert all(isinstance(each, np.ndarray) for each in episode.observations.values())
    assert len(stores) > 1


def recorded() -> Episode:
    frames = np.zeros((12, 64, 64, 3), np.uint8)
    return Episode({"rgb": frames}, np.zeros((11, 4), np.float32), np.zeros(11, np.float32))


def on_gpu(*shape: int) -> torch.Tensor:
    return torch.ones(shape, device="cuda")


@pytest.mark.parametrize(
    "read",
    [
        lambda x: float(x.sum()),
        lambda x: x.sum().item(),
        lambda x: 1 if x.sum() > 0 else 2,
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.empty(3, 4).copy_(x),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 0),
        lambda x: torch.multinomial(x, 1),
        lambda x: torch.bincount(x.long().flatten()),
        lambda x: torch.unique(x),
        lambda x: torch.equal(x, x),
        lambda x: torch.linalg.cholesky(x[:, :3]),
        lambda x: x.repeat_interleave(on_gpu(3).long(), 0),
        lambda x: torch.cuda.synchronize(),
    ],
)
def test_what_waits_for_a_gpu_is_found(read):
    with FakeCuda({})(), pytest.raises(Waits, match="waits for the GPU"):
        read(on_gpu(3, 4))


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.cat([x, torch.ones(3, 4)]),
        lambda x: x @ torch.ones(4, 2),
        lambda x: torch.where(x > 0, x, torch.zeros(3, 4)),
        lambda x: torch.nn.Linear(4, 2)(x),
    ],
)
def test_a_tensor_left_on_the_cpu_is_found(mix):
    with FakeCuda({})(), pytest.raises(OtherDevice, match="on the CPU and the GPU"):
        mix(on_gpu(3, 4))


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.as_tensor(np.ones(3), device=x.device),
        lambda x: torch.ones(3).to(x),
        lambda x: x.copy_(torch.ones(3, 4)),
        lambda x: x[[0, 2]],
    ],
)
def test_a_copy_to_the_gpu_inside_a_solve_is_found(copy, monkeypatch):
    inside = "nn/observations.py:device_of"  # any function of the package that calls another
    monkeypatch.setattr("latentplan.nn.observations.chain", lambda *parts: iter([copy(parts[0])]))
    found = SimpleNamespace(parameters=lambda: on_gpu(3, 4), buffers=lambda: ())
    from latentplan.nn.observations import device_of

    with FakeCuda({}, inside=(inside,))(), pytest.raises(Waits, match="copies to the GPU"):
        device_of(found)
    with FakeCuda({})():
        assert device_of(found) == CUDA


def test_a_fake_tensor_is_on_the_gpu_whatever_made_it():
    with FakeCuda({})():
        x = on_gpu(3, 4)
        drawn = torch.rand(3, device=x.device, generator=torch.Generator("cuda"))
        for each in (x, drawn, x.new_zeros(2), torch.randn_like(x), x.sum(), x.to(torch.int64)):
            assert each.device == CUDA and each.is_cuda and not each.is_meta
        assert not torch.ones(2).is_cuda
        assert isinstance(torch.Generator("cuda"), FakeGenerator)
    assert x.is_meta and not isinstance(torch.Generator(), FakeGenerator)
