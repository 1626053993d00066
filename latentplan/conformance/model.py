"""What every model promises, as far as it is a Learner, a Dynamics or a VideoModel.

A model of several networks (`protocols.Staged`) is checked freshly built; each of its stages is
trained as a Learner by `latentplan train`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from latentplan.conformance import data
from latentplan.conformance.suite import NotApplicable, Subject, refuses, require
from latentplan.errors import ShapeError
from latentplan.protocols import (
    ActionProposer,
    Dynamics,
    Learner,
    PrivilegedModel,
    SubgoalModel,
    VideoModel,
)
from latentplan.types import Batch, Context, Goal, Tensors

NOISE = 0.1  # on weights: nothing is almost zero, so that what leaks is seen
UPDATES, RATE = 10, 1e-3  # of AdamW, after which a loss has fallen once


def check_loss(subject: Subject) -> None:
    """Check that the loss is a finite scalar that trains every weight, and that it falls."""
    model: Any = built(subject)
    _is(model, Learner, "is no Learner; its stages are")
    if model.targets:
        raise NotApplicable(f"its loss reads privileged {', '.join(model.targets)}")
    batch = windows(model)
    model.train()
    weights = [(name, w) for name, w in model.named_parameters() if w.requires_grad]
    optimiser = torch.optim.AdamW([weight for _, weight in weights], RATE)
    losses: list[float] = []
    for _ in range(UPDATES):
        loss = model.loss(batch)
        require(loss.total.shape == (), f"its shape is {tuple(loss.total.shape)}, need ()")
        require(bool(loss.total.isfinite()), f"it is {loss.total.item()}")
        for name, part in loss.parts.items():
            finite = bool(part.isfinite().all())
            require(finite and not part.requires_grad, f"part {name!r} has a gradient or is {part}")
        optimiser.zero_grad()
        loss.total.backward()
        if not losses:
            dead = [name for name, w in weights if w.grad is None or not bool(w.grad.any())]
            require(not dead, f"no gradient of {', '.join(dead)}")
        optimiser.step()
        losses.append(loss.total.item())
    lowest = min(losses[UPDATES // 2 :])
    require(lowest < losses[0], f"it starts at {losses[0]:.4g}, after {UPDATES} steps {lowest:.4g}")


def check_latents(subject: Subject) -> None:
    """Check that latents of encode and rollout have the shapes that the model states."""
    model = _dynamics(subject)
    z = model.encode(seen(model, 2, model.context + 2))
    _shape("encode", z, (2, model.context + 2, model.latent_dim))
    ahead = imagined(model, z[:, -model.context :], data.actions(model.spec, 2, 5, 4))
    _shape("rollout", ahead, (2, 5, 4, model.latent_dim))
    require(bool(ahead.isfinite().all()), "latents of rollout are not finite")


def check_rows(subject: Subject) -> None:
    """Check that a problem or candidate does not depend on the others of its batch."""
    model = _dynamics(subject)
    observations = seen(model, 3, model.context)
    actions = data.actions(model.spec, 3, 5, 2)
    both = imagined(model, model.encode(observations), actions)
    for row in range(3):
        one = {key: value[row : row + 1] for key, value in observations.items()}
        alone = imagined(model, model.encode(one), actions[row : row + 1, 1:2])
        _close(alone[0, 0], both[row, 1], f"problem {row}, alone and in a batch")


def check_later_actions(subject: Subject) -> None:
    """Check that a rollout depends on each action, and on none that comes later."""
    model = _dynamics(subject)
    context = model.encode(seen(model, 1, model.context))
    actions = data.actions(model.spec, 1, 1, 4)
    changed = actions.clone()
    changed[:, :, 2:] = data.actions(model.spec, 1, 1, 2, seed=2)
    left, right = imagined(model, context, actions), imagined(model, context, changed)
    _close(left[:, :, :2], right[:, :, :2], "before the action that is another")
    same = torch.allclose(left[:, :, 2:], right[:, :, 2:])
    require(not same, "other actions lead to the same latents")


def check_prepared(subject: Subject) -> None:
    """Check that a rollout does not change what prepare returns."""
    model = _dynamics(subject)
    context = _context(model, model.encode(seen(model, 2, model.context)))
    prepared = model.prepare(context)
    actions = data.actions(model.spec, 2, 3, 4)
    first = model.rollout(prepared, actions)
    model.rollout(prepared, data.actions(model.spec, 2, 2, 1, seed=2))
    _close(model.rollout(prepared, actions), first, "between two rollouts of one prepare")


def check_wrong_shapes(subject: Subject) -> None:
    """Check that observations, latents or actions of a wrong shape raise ShapeError."""
    model = _dynamics(subject)
    observations, size = seen(model, 1, model.context), model.spec.action.size
    context = model.encode(observations)
    refuses(
        "an action of too many numbers",
        ShapeError,
        lambda: imagined(model, context, torch.zeros(1, 2, 3, size + 1)),
    )
    refuses(
        "a latent of too few numbers",
        ShapeError,
        lambda: imagined(model, context[..., :-1], torch.zeros(1, 2, 3, size)),
    )
    refuses(
        "an observation without its time axis",
        ShapeError,
        lambda: model.encode({key: value[0] for key, value in observations.items()}),
    )


def check_log_prob(subject: Subject) -> None:
    """Check that a frame's log-probability depends on no later frame and no other video."""
    model = _video(subject)
    stride, length = model.stride, 3 * model.stride
    video = frames(model, 2, length)
    found = model.log_prob(video)
    _shape("log_prob", found, (2, length))
    require(bool(found.isfinite().all()), "it is not finite")
    groups = found.view(2, 3, stride)
    last = bool((groups[..., -1] < 0).all()) and bool((groups[..., :-1] == 0).all())
    require(last, f"of each {stride} frames the last has it, found {groups[0].tolist()}")
    known = 2 * stride
    changed = {
        key: torch.cat([v[:, :known], 255 - v[:, known:]], dim=1) for key, v in video.items()
    }
    after = model.log_prob(changed)
    _close(after[:, :known], found[:, :known], "before the frame that is another")
    same = torch.allclose(after[:, known:], found[:, known:])
    require(not same, "another frame has the same log-probability")
    alone = model.log_prob({key: value[1:] for key, value in video.items()})
    _close(alone[0], found[1], "a video, alone and in a batch", atol=1e-3)


def check_samples(subject: Subject) -> None:
    """Check that samples are images that depend on the frames and the generator alone."""
    model = _video(subject)

    def draw(seed: int) -> Tensors:
        given = frames(model, 2, model.stride)
        return model.sample(given, 2, generator=data.seeded(seed))

    first, again = draw(0), draw(0)
    _images("sample", first, model, (2, 2))
    for key, value in first.items():
        same = torch.equal(value, again[key])
        require(same, f"{key!r} differs between two samples of one seed")


def check_decoded(subject: Subject) -> None:
    """Check that a VideoModel's latents are decoded to images, the same each time."""
    model: Any = _video(subject)
    _is(model, Dynamics, "has no latents")
    z = model.encode(seen(model, 2, 3))
    shown, again = model.decode(z), model.decode(z)
    _images("decode", shown, model, (2, 3))
    for key, value in shown.items():
        require(torch.equal(value, again[key]), f"{key!r} differs between two decodings")


def check_subgoal(subject: Subject) -> None:
    """Check that a subgoal is a latent a problem, the same each time, whatever the batch."""
    model: Any = noisy(subject)
    _is(model, SubgoalModel, "predicts no subgoals")
    context = _context(model, model.encode(seen(model, 2, model.context)))
    towards = model.subgoal()
    goal = towards(context, 2)
    _shape("subgoal", goal, (2, model.latent_dim))
    _close(towards(context, 2), goal, "between two predictions")
    second = Context(context.latents[1:], context.actions[1:])
    _close(towards(second, 2)[0], goal[1], "a problem, alone and in a batch")
    if hasattr(model, "decode"):
        again = model.encode(model.decode(goal[:, None]))
        _shape("encode of a decoded subgoal", again, (2, 1, model.latent_dim))


def check_proposal(subject: Subject) -> None:
    """Check that actions that the model proposes are finite and inside the bounds."""
    model: Any = noisy(subject)
    _is(model, ActionProposer, "proposes no actions")
    context = _context(model, model.encode(seen(model, 1, model.context)))
    goal = Goal(observation={k: v[0, 0].numpy() for k, v in seen(model, 1, 1).items()})
    found = model.proposal(goal).sample(context, 3, horizon=6, generator=data.seeded())
    size = model.spec.action.size
    require(found.ndim == 4 and len(found) == 1, f"their shape is {tuple(found.shape)}")
    _shape("proposal", found[:, 0], (1, 6, size))
    low, high = torch.tensor(model.spec.action.low), torch.tensor(model.spec.action.high)
    inside = bool(((found >= low) & (found <= high)).all())
    require(inside, f"found {found.min():.3g} to {found.max():.3g}, out of bounds")


def built(subject: Subject) -> Any:
    """Return a new model of the subject's spec, else of the suite's, with the same weights."""
    torch.manual_seed(0)
    suite = data.PRIVILEGED if isinstance(subject.make, PrivilegedModel) else data.SPEC
    return subject.build(subject.spec or suite).eval()


def noisy(subject: Subject) -> Any:
    """Return a new model whose weights have noise."""
    model = built(subject)
    with torch.no_grad():
        for weight in model.parameters():
            weight += NOISE * torch.randn_like(weight)
    return model


def seen(model: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Return observations (B, T, ...) of what the model observes."""
    return data.observations(model.spec, batch, length)


def frames(model: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Return images (B, T, h, w, 3) of the cameras that the model observes."""
    return data.observations(data.images(model.spec), batch, length)


def windows(model: Any, batch: int = 8) -> Batch:
    """Return training windows with the fields that the model reads."""
    length = max(model.window, 2)
    task = torch.zeros(batch, length, dtype=torch.int64)
    optional: dict[str, Any] = {
        "rewards": torch.randn(batch, length - 1, generator=data.seeded(2)),
        "task": task,
        "segments": task + torch.arange(batch)[:, None],
    }
    return Batch(
        seen(model, batch, length),
        data.actions(model.spec, batch, length - 1),
        **{name: value for name, value in optional.items() if name in model.reads},
    )


def imagined(model: Dynamics, latents: Tensor, actions: Tensor) -> Tensor:
    """Return what follows latents (B, T, D) under actions (B, N, H, A)."""
    return model.rollout(model.prepare(_context(model, latents)), actions)


def _context(model: Dynamics, latents: Tensor) -> Context:
    past = torch.zeros(len(latents), latents.shape[1] - 1, model.spec.action.size)
    return Context(latents, past)


def _dynamics(subject: Subject) -> Dynamics:
    model: Dynamics = built(subject)
    _is(model, Dynamics, "is no Dynamics")
    return model


def _video(subject: Subject) -> VideoModel:
    model: VideoModel = noisy(subject)
    _is(model, VideoModel, "is no VideoModel")
    return model


def _is(model: object, protocol: type, otherwise: str) -> None:
    if not isinstance(model, protocol):
        raise NotApplicable(otherwise)


def _shape(where: str, found: Tensor, wanted: tuple[int, ...]) -> None:
    shape = tuple(found.shape)
    require(shape == wanted, f"{where} returns shape {shape}, need {wanted}")


def _images(where: str, found: Tensors, model: Any, shape: tuple[int, int]) -> None:
    cameras = data.images(model.spec).observation
    require(set(found) == set(cameras), f"{where} returns {sorted(found)}, need {sorted(cameras)}")
    for key, array in cameras.items():
        _shape(f"{where}, {key!r},", found[key], (*shape, *array.shape))
        require(found[key].dtype == torch.uint8, f"{where} returns {found[key].dtype}, need uint8")


def _close(found: Tensor, wanted: Tensor, where: str, *, atol: float = 1e-5) -> None:
    close = torch.allclose(found, wanted, rtol=1e-4, atol=atol)
    require(close, f"they differ by {(found - wanted).abs().max():.3g}: {where}")
