"""Training on a GPU, without one: no tensor is left on the CPU, and no step waits for the GPU.

Every registered learner, and every stage of a model, is trained on tensors that claim to be on
`cuda:0` (see test_gpu_path.py). What a step reads is read at the points of the curves alone.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_cuda import CUDA, VECTOR_QUANTIZE, FakeCuda
from small_models import BOX, SETTINGS, SIDE, VARIANTS, box, model
from trainings import small

from latentplan import registry
from latentplan.conformance.suite import subject
from latentplan.protocols import Staged
from latentplan.training.heldout import HeldOut, evaluate, for_model
from latentplan.training.state import State
from latentplan.types import Batch, Convention, Derived, Episode, Label, Stage

TRAINING = {
    **VECTOR_QUANTIZE,
    "tokenizers/video_vqvae.py:forward": "the momentum of the first ten batches",
}
BASELINES = ("autoencoder", "jepa", "joint", "keypoints", "pixel", "planet")
LWM = [  # one stage: the fake GPU holds no weights that a second could begin with
    *("model.contexts=[6]", "model.thetas=[1e4]", "model.efforts=[1.0]"),
    "model.transformer.tasks=true",
]
ARM = Convention("ee_delta", rotation="rotvec", frame="base", gripper="close_is_-1")
LEARNERS = {
    "cfm": ("model", "cfm", []),
    "cfm_paper": ("model", *VARIANTS["cfm_paper"]),
    "vqvae": ("tokenizer", "vqvae", ["tokenizer.background=true"]),
    "vqvae, vq": ("tokenizer", "vqvae", ["tokenizer.quantizer=vq"]),
    "video_vqvae": ("tokenizer", "video_vqvae", []),
    "elastictok": ("tokenizer", "elastictok", ["tokenizer.blocks=2"]),
    "lqae": ("tokenizer", "lqae", []),
    "selftok": ("tokenizer", "selftok", []),
    "calibrated": ("model", "calibrated", []),
    **{name: ("model", name, []) for name in BASELINES},
    "lwm": ("model", "lwm", LWM),
    "videoworld": ("model", "videoworld", ["model.ldm.whiten=true", "model.ldm.motion=1"]),
    "videoworld, frames": ("model", *VARIANTS["videoworld, frames"]),
    "povt": ("model", "povt", []),
    "teco": ("model", "teco", []),
    "elastic": ("model", "elastic", []),
    "multistep_inverse": ("model", "multistep_inverse", []),
    "calibrated, episodes": ("model", "calibrated", ["model.inverse.episodes=true"]),
    "videogpt": ("model", "videogpt", ["model.prior.tasks=true", "model.prior.hide=0.3"]),
}


VECTOR_QUANTIZED = {"vqvae, vq", "video_vqvae", "videogpt", "teco"}


def declared(kind, name, settings):
    """Yield the steps of a training, each with its networks so far and the spec of its data."""
    make = registry.get(kind, name)
    chosen = [*(small(name) if kind == "model" else ()), *SETTINGS.get(name, ()), *settings]
    tested = subject(kind, name, overrides=chosen)
    if not issubclass(make, Staged):
        yield Stage(name, lambda spec, parts: tested.build(spec)), {}, box(make)
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


def step_of(learner, state: State) -> None:
    loss = learner.loss(for_model(windows(learner), learner)).total
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()


def test_a_resumed_training_has_all_of_its_state_on_the_gpu(tmp_path):
    def started(device):
        learner = model.__wrapped__("cfm").requires_grad_(True).to(device)
        return learner, State(
            learner, optimizer=torch.optim.AdamW(learner.parameters(), fused=True), ema=None
        )

    learner, state = started("cpu")
    step_of(learner, state)
    state.save(tmp_path)
    with FakeCuda({})():
        learner, state = started(CUDA)
        state.restore(tmp_path)
        step_of(learner, state)
        kept = [each for values in state.optimizer.state.values() for each in values.values()]
        assert kept and all(each.device == CUDA for each in kept)


HELD_OUT = {
    "training/heldout.py:evaluate": "figures are read at the end",
    "training/heldout.py:top1": "the same",
    "training/heldout.py:error": "the same",
    "training/heldout.py:distances": "the same, computed on the CPU",
}


def test_held_out_figures_are_computed_on_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    learner = model("cfm")
    seen = replace(windows(learner), targets={"keypoints": torch.zeros(4, 2, 5, 2)})
    with FakeCuda(HELD_OUT)():
        evaluate(learner.to(CUDA), HeldOut([seen], [seen], "keypoints"))


STORES = {  # what is written comes from the CPU
    "models/frame_tokens.py:tokens_of": "the tokens",
    "models/latents.py:latents_of": "the latents",
    "models/povt/povt.py:objects_of": "the tokens, boxes and glimpses",
    "models/videogpt/clips.py:clips_of": "the tokens",
    "models/videoworld/stages.py:tokenised": "the codes",
    "models/videoworld/stages.py:_states": "the states",
    **VECTOR_QUANTIZE,
}


DERIVES = [
    *("calibrated", "elastic", "lwm", "multistep_inverse", "povt", "teco", "videogpt"),
    "videoworld",
]


@pytest.mark.parametrize("name", DERIVES)
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
    frames = np.zeros((12, SIDE, SIDE, 3), np.uint8)
    return Episode({"rgb": frames}, np.zeros((11, 4), np.float32), np.zeros(11, np.float32))
