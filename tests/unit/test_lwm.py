"""LWM: packing, the shared prefix, the curriculum, and its errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from trainings import small

from latentplan.api.load import load
from latentplan.api.train import train
from latentplan.data.packing import PADDING
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, ShapeError
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.lwm.lwm import LWM
from latentplan.models.lwm.stream import PROPRIOCEPTION, Stream
from latentplan.types import (
    ActionSpec,
    ArraySpec,
    Batch,
    Context,
    Episode,
    Label,
    Moments,
    Part,
    Spec,
)

STREAM = Spec(
    {TOKENS: ArraySpec((4,), "int32"), PROPRIOCEPTION: ArraySpec((3,), "float32")},
    ActionSpec((-1.0,) * 2, (1.0,) * 2),
    tasks=("open", "close"),
)
SMALL = Stream.Config(vocabulary=9, context=12, tasks=True, width=16, layers=2, heads=2, chunk=16)
LENGTHS = (5, 3, 4)  # steps of the examples in a row of 14
ROBOT = Spec(
    {
        "rgb": ArraySpec((16, 16, 3), "uint8"),
        "joints": ArraySpec((3,), "float32", "rad"),
        "gripper": ArraySpec((), "float32"),
    },
    ActionSpec((-1.0,) * 2, (1.0,) * 2),
    tasks=("open",),
)
CONFIG = LWM.Config(
    contexts=(4, 12),
    horizon=4,
    transformer=Stream.Config(width=16, layers=2, heads=2, chunk=32),
)


@pytest.fixture(scope="module")
def stream():
    torch.manual_seed(0)
    return Stream(STREAM, SMALL).eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = LWM(ROBOT, CONFIG).eval().requires_grad_(False)
    with torch.no_grad():  # at its own scale the output of a new network hardly varies
        for weight in made.transformer.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return made


def examples(lengths=LENGTHS, seed=0):
    torch.manual_seed(seed)
    return [
        Batch(
            {
                TOKENS: torch.randint(0, 9, (1, n, 4), dtype=torch.int32),
                PROPRIOCEPTION: torch.randn(1, n, 3),
            },
            torch.rand(1, n - 1, 2) * 2 - 1,
            task=torch.randint(0, 3, (1, n)),
            segments=torch.zeros(1, n, dtype=torch.int64),
        )
        for n in lengths
    ]


def packed(parts, length=14):
    """Return one row of the examples, and padding; actions between them are noise."""
    count = sum(each.actions.shape[1] + 1 for each in parts)
    pad = length - count

    def row(values, fill):
        return torch.cat([*values, fill.expand(1, pad, *fill.shape[2:])], dim=1)

    ids = [torch.full_like(each.segments, n) for n, each in enumerate(parts)]
    actions = [torch.cat([each.actions, torch.randn(1, 1, 2)], dim=1) for each in parts]
    return Batch(
        {
            key: row([e.observations[key] for e in parts], parts[0].observations[key][:, :1])
            for key in parts[0].observations
        },
        row(actions, torch.randn(1, 1, 2))[:, :-1],
        task=row([each.task for each in parts], torch.ones(1, 1, dtype=torch.int64)),
        segments=row(ids, torch.full((1, 1), PADDING)),
    )


def loss_and_gradients(stream, batches):
    total = torch.stack([stream.loss(each).total for each in batches]).mean()
    found = torch.autograd.grad(total, [*stream.parameters()], allow_unused=True)
    return total.detach(), found


def test_packed_loss_and_gradients_are_those_of_examples_one_by_one(stream):
    parts = examples()
    alone, wanted = loss_and_gradients(stream, parts)
    together, found = loss_and_gradients(stream, [packed(parts)])
    assert abs(together - alone) < 1e-5
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 1e-4


def test_naive_weights_are_another_loss(stream):
    row = packed(examples())
    naive = Stream(STREAM, replace(SMALL, weighting="position"), start=stream).eval()
    assert abs(naive.loss(row).total - stream.loss(row).total) > 1e-3


def test_another_example_in_the_row_changes_no_bit(stream):
    parts = examples()
    other = [examples(seed=1)[0], *parts[1:]]
    hidden = []
    for row in (packed(parts), packed(other)):
        seen = row.observations
        proprio = seen[PROPRIOCEPTION]
        known = {"task": row.task, "segments": row.segments}
        actions = torch.zeros_like(row.actions)  # noise between the examples aside
        hidden.append(stream(seen[TOKENS].long(), proprio, actions, **known))
    first, rest = slice(0, 5), slice(5, 12)
    assert torch.equal(hidden[0][:, rest], hidden[1][:, rest])
    assert not torch.allclose(hidden[0][:, first], hidden[1][:, first])


def test_a_step_depends_on_none_that_comes_later(stream):
    one = packed(examples((12,)))
    seen = {key: each.clone() for key, each in one.observations.items()}
    seen[TOKENS][:, 7:] = (seen[TOKENS][:, 7:] + 1) % 9
    before, after = (
        stream(each[TOKENS].long(), each[PROPRIOCEPTION], one.actions, segments=one.segments)
        for each in (one.observations, seen)
    )
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:12], after[:, 7:12])


def history(model, steps, batch=2, seed=0):
    torch.manual_seed(seed)
    seen = {
        "rgb": torch.randint(0, 256, (batch, steps, 16, 16, 3), dtype=torch.uint8),
        "joints": torch.randn(batch, steps, 3),
        "gripper": torch.randn(batch, steps),
    }
    return Context(model.encode(seen), torch.rand(batch, steps - 1, 2) * 2 - 1)


def encoded_again(model, context, actions):
    """Return the rollout (N, H, D) of problem 0 with the whole history in each candidate."""
    stream, n = model.transformer, actions.shape[1]
    ids, proprio = model._split(context.latents[:1].expand(n, -1, -1))
    past = context.actions[:1].expand(n, -1, -1)
    x = stream.steps(ids, proprio, torch.cat([past, actions[0, :, :1]], dim=1))
    found = []
    for h in range(actions.shape[2]):
        out = stream.body(x.flatten(1, 2)).unflatten(1, (-1, stream.block))[:, -1]
        after = stream.predicted(out)
        found.append(
            torch.cat([(after.tokens @ stream.codes).flatten(1), after.proprioception], dim=1)
        )
        if h + 1 < actions.shape[2]:
            images = after.tokens @ stream.embed.weight
            seen = stream._observation(images, after.proprioception, None)
            step = torch.cat([seen, stream._action(actions[0, :, h + 1])], dim=1)
            x = torch.cat([x, step[:, None]], dim=1)
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_shared_prefix_gives_what_each_candidate_alone_would(model, steps):
    context, actions = history(model, steps), torch.rand(2, 5, 4, 2) * 2 - 1
    prepared = model.prepare(context)
    found = model.rollout(prepared, actions)
    wanted = encoded_again(model, context, actions)
    assert (found[0] - wanted).abs().max() < 1e-4
    assert wanted.std(0).max() > 1e-2  # the actions matter
    keys = prepared.prefix.layers[0][0]
    assert keys.shape[0] == 2 and keys.shape[2] == (steps - 1) * model.transformer.block


def test_a_planner_by_gradients_has_them_through_the_prefix(model):
    context, actions = history(model, 6), torch.zeros(2, 3, 4, 2)
    prepared, free = model.prepare(context), actions.clone().requires_grad_()
    out = model.rollout(prepared, free)
    assert torch.allclose(out, model.rollout(prepared, actions), atol=1e-5)
    (grad,) = torch.autograd.grad(out[:, :, -1].sum(), free)
    assert (grad.abs().amax(dim=(0, 1, 3)) > 0).all()


def test_copies_of_the_first_observation_are_not_attended_to(model):
    short = history(model, 4)
    pad = 8 - 4
    first = short.latents[:, :1].expand(-1, pad, -1)
    padded = Context(
        torch.cat([first, short.latents], dim=1),
        torch.cat([torch.zeros(2, pad, 2), short.actions], dim=1),
    )
    actions = torch.rand(2, 3, 2, 2)
    one, other = (model.rollout(model.prepare(each), actions) for each in (short, padded))
    assert (one - other).abs().max() < 1e-4


def test_latents_are_the_tokens_and_scaled_proprioception(model):
    context = history(model, 3)
    ids, proprio = model._split(context.latents)
    again = model.tokenizer.encode(model.decode(context.latents)).ids.shape
    assert ids.shape == again and proprio.shape == (2, 3, 4)
    model.transformer.scaling.fit(Moments(np.full(4, 2.0), np.full(4, 4.0)))
    seen = {"rgb": torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8), "gripper": torch.ones(1, 1)}
    z = model.encode({**seen, "joints": torch.full((1, 1, 3), 6.0)})
    assert torch.allclose(z[0, 0, -4:], torch.tensor([-0.25, 1.0, 1.0, 1.0]))
    model.transformer.scaling.fit(Moments(np.zeros(4), np.ones(4)))


def test_bad_input_is_one_line(model, tmp_path):
    vq = Part("tokenizer", "vqvae")
    other = LWM(ROBOT, replace(CONFIG, tokenizer=vq)).tokenizer
    other.vocabulary = 7
    wrong = [
        (ShapeError, "found 9 latents, need at most 8: contexts.-1.=12 less horizon=4",
         lambda: model.prepare(history(model, 9))),
        (ShapeError, "found 5 actions, need at most horizon=4",
         lambda: model.rollout(model.prepare(history(model, 2)), torch.zeros(2, 1, 5, 2))),
        (ShapeError, "LWM.encode.'joints'.: found shape .1, 1, 2., need .B, T, 3.",
         lambda: model.encode({"rgb": torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8),
                               "gripper": torch.ones(1, 1), "joints": torch.ones(1, 1, 2)})),
        (ConfigError, "was trained on 4 tokens of 1000, the tokenizer has 4 of 7",
         lambda: LWM(ROBOT, CONFIG, tokenizer=other, transformer=model.transformer)),
        (ConfigError, "found 2 contexts, 1 thetas", lambda: LWM.Config(thetas=(1e4,))),
        (ConfigError, "need growing numbers", lambda: replace(CONFIG, contexts=(12, 4))),
        (ConfigError, "LWM.horizon", lambda: replace(CONFIG, horizon=12)),
        (ConfigError, "no vector 'force'; the data have: gripper, joints",
         lambda: LWM(ROBOT, replace(CONFIG, proprioception=("force",)))),
        (ConfigError, "video_vqvae takes 2 observations a token frame, need 1",
         lambda: LWM(ROBOT, replace(CONFIG, tokenizer=Part("tokenizer", "video_vqvae")))),
        (ConfigError, "need example or position", lambda: Stream.Config(weighting="row")),
    ]  # fmt: skip
    for error, said, call in wrong:
        with pytest.raises(error, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def robot_data(tmp_path_factory):
    """Episodes of 4 to 12 observations, some shorter than the context."""
    path = tmp_path_factory.mktemp("data") / "robot.zarr"
    with ZarrStore.create(path, ROBOT) as store:
        for number in range(8):
            rng, n = np.random.default_rng(number), 4 + number
            seen = {
                "rgb": rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8),
                "joints": rng.normal(size=(n, 3)).astype(np.float32),
                "gripper": rng.normal(size=n).astype(np.float32),
            }
            actions = rng.uniform(-1, 1, (n - 1, 2)).astype(np.float32)
            rewards, labels = np.zeros(n - 1, np.float32), (Label("open it", "open"),)
            store.append(Episode(seen, actions, rewards, labels=labels))
    return path


def test_it_trains_in_a_curriculum_on_episodes_shorter_than_a_row(robot_data, tmp_path):
    few = {"steps": 2, "batch": 2, "held_out": 0.3, "warmup": 1}
    chosen = [f"training.{s}.{k}={v}" for s in ("tokenizer", "transformer") for k, v in few.items()]
    chosen += [*small("lwm"), "model.contexts=[4,12]", "model.transformer.tasks=true"]
    trained = []
    result = train(
        "lwm",
        data=robot_data,
        run=tmp_path / "run",
        overrides=chosen,
        on_progress=lambda p: trained.append(p.task) if p.task not in trained else None,
    )
    assert trained == ["train tokenizer", "streams", "train transformer_4", "train transformer"]
    assert {"transformer.image", "transformer.proprioception"} <= set(result.figures)
    own = {"planner.horizon": 2, "planner.candidates": 6, "planner.elites": 2}
    policy = load(tmp_path / "run", overrides=[f"{key}={value}" for key, value in own.items()])
    with ZarrStore.open(robot_data) as store:
        episode = store.episode(7)
    for t in range(3):
        seen = {key: each[t] for key, each in episode.observations.items()}
        if t == 0:
            policy.goal({key: each[-1] for key, each in episode.observations.items()})
        assert policy.act(seen).shape == (2,)
