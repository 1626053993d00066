"""The checks of models find what is broken: models that keep all, and one that breaks each."""

import pytest
import torch
from toy_model import ToyModel

from latentplan import shapes
from latentplan.conformance.suite import Broken, Subject, checks, run
from latentplan.types import Loss


class Kept(ToyModel):
    """The linear toy model of images, with what a model may have beside."""

    stride = 1

    def encode(self, observations):
        shapes.check("Kept.encode", observations["rgb"], "B T h w c")
        return super().encode(observations)

    def prepare(self, context):
        shapes.check("Kept.prepare", context.latents, "B T D", D=self.latent_dim)
        return super().prepare(context)

    def rollout(self, prepared, actions):
        shapes.check("Kept.rollout", actions, "B N H A", A=4)
        return super().rollout(prepared, actions)

    def decode(self, latents):
        n = self.config.cells
        cells = (255 * latents).clamp(0, 255).round().to(torch.uint8).unflatten(2, (n, n, 3))
        return {"rgb": cells.repeat_interleave(16, 2).repeat_interleave(16, 3)}

    def log_prob(self, frames, *, actions=None, task=None):
        z = self.encode(frames)
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], dim=1)
        return -(z - before).square().sum(-1)

    def sample(self, frames, steps, *, actions=None, task=None, temperature=1.0, generator=None):
        last = self.encode(frames)[:, -1:].expand(-1, steps, -1)
        return self.decode(last + torch.randn(last.shape, generator=generator))

    def subgoal(self, task=""):
        return lambda context, steps: context.latents[:, -1] + 0.1 * steps

    def proposal(self, goal):
        return self.Uniform()

    class Uniform:
        def sample(self, context, count, *, horizon, generator):
            size = (len(context.latents), count, horizon, 4)
            return 2 * torch.rand(size, generator=generator) - 1


class Unbounded(Kept):
    def loss(self, batch):
        return Loss(self.A.sum() * torch.inf, {})


class Dead(Kept):
    def __init__(self, spec, config=None):
        super().__init__(spec, config)
        self.unused = torch.nn.Linear(2, 2)


class Attached(Kept):
    def loss(self, batch):
        total = super().loss(batch).total
        return Loss(total, {"prediction": total})


class Rising(Kept):
    def loss(self, batch):
        loss = super().loss(batch)
        return Loss(2 * loss.total.detach() - loss.total, loss.parts)


class Narrow(Kept):
    def rollout(self, prepared, actions):
        return super().rollout(prepared, actions)[..., :-1]


class Mixing(Kept):
    def encode(self, observations):
        z = super().encode(observations)
        return z - z.mean(0)


class Competing(Kept):
    def rollout(self, prepared, actions):
        z = super().rollout(prepared, actions)
        return z - z.mean(1, keepdim=True)


class Clairvoyant(Kept):
    def rollout(self, prepared, actions):
        return super().rollout(prepared, actions + actions.mean(2, keepdim=True))


class Passive(Kept):
    def rollout(self, prepared, actions):
        return super().rollout(prepared, 0 * actions)


class Overwriting(Kept):
    def rollout(self, prepared, actions):
        found = super().rollout(prepared, actions)
        prepared += 1
        return found


class Lenient(ToyModel):
    def rollout(self, prepared, actions):
        return super().rollout(prepared, actions[..., :4])


class Timeless(Kept):
    def encode(self, observations):
        rgb = observations["rgb"]
        return super().encode({"rgb": rgb if rgb.ndim == 5 else rgb[None]})


class Peeking(Kept):
    def log_prob(self, frames, *, actions=None, task=None):
        found = super().log_prob(frames)
        return found - found.square().mean(1, keepdim=True)


class Sociable(Kept):
    def log_prob(self, frames, *, actions=None, task=None):
        found = super().log_prob(frames)
        return found - found.square().mean(0)


class Indifferent(Kept):
    def log_prob(self, frames, *, actions=None, task=None):
        return 0 * super().log_prob(frames) - 1


class Certain(Kept):
    def log_prob(self, frames, *, actions=None, task=None):
        return super().log_prob(frames).abs()


class Unseeded(Kept):
    def sample(self, frames, steps, *, actions=None, task=None, temperature=1.0, generator=None):
        return super().sample(frames, steps)


class Float(Kept):
    def sample(self, *arguments, **options):
        return {"rgb": super().sample(*arguments, **options)["rgb"].float()}


class Grainy(Kept):
    def decode(self, latents):
        return super().decode(latents + 0.1 * torch.randn_like(latents))


class Wandering(Kept):
    def subgoal(self, task=""):
        return lambda context, steps: context.latents[:, -1] + torch.randn(self.latent_dim)


class Averaging(Kept):
    def subgoal(self, task=""):
        return lambda context, steps: (
            context.latents[:, -1].mean(0).expand(len(context.latents), -1)
        )


class Wild(Kept):
    class Uniform(Kept.Uniform):
        def sample(self, *arguments, **options):
            return 2 * super().sample(*arguments, **options)


class Short(Kept):
    class Uniform(Kept.Uniform):
        def sample(self, *arguments, **options):
            return super().sample(*arguments, **options)[:, :, 1:]


BREAKS = [
    ("loss", Unbounded, "it is inf"),
    ("loss", Dead, "no gradient of unused.weight, unused.bias"),
    ("loss", Attached, "part 'prediction' has a gradient"),
    ("loss", Rising, "it starts at"),
    ("latents", Narrow, "rollout returns shape (2, 5, 4, 47), need (2, 5, 4, 48)"),
    ("rows", Mixing, "problem 0, alone and in a batch"),
    ("rows", Competing, "problem 0, alone and in a batch"),
    ("later_actions", Clairvoyant, "before the action that is another"),
    ("later_actions", Passive, "other actions lead to the same latents"),
    ("prepared", Overwriting, "between two rollouts of one prepare"),
    ("wrong_shapes", Lenient, "an action of too many numbers is accepted, need ShapeError"),
    ("wrong_shapes", Timeless, "an observation without its time axis is accepted"),
    ("log_prob", Peeking, "before the frame that is another"),
    ("log_prob", Sociable, "a video, alone and in a batch"),
    ("log_prob", Indifferent, "another frame has the same log-probability"),
    ("log_prob", Certain, "of each 1 frames the last has it"),
    ("samples", Unseeded, "'rgb' differs between two samples of one seed"),
    ("samples", Float, "sample returns torch.float32, need uint8"),
    ("decoded", Grainy, "'rgb' differs between two decodings"),
    ("subgoal", Wandering, "between two predictions"),
    ("subgoal", Averaging, "a problem, alone and in a batch"),
    ("proposal", Wild, "out of bounds"),
    ("proposal", Short, "proposal returns shape (1, 5, 4), need (1, 6, 4)"),
]


def of(made):
    return Subject("model", "toy", made, made.Config(key="rgb"))


def test_a_model_that_keeps_all_passes():
    assert [r for r in run(of(Kept)) if r.status != "ok"] == []


def test_what_a_model_is_not_is_skipped():
    skipped = {r.found for r in run(of(ToyModel)) if r.status == "skipped"}
    assert skipped == {"is no VideoModel", "predicts no subgoals", "proposes no actions"}


@pytest.mark.parametrize("check, made, found", BREAKS, ids=[b[1].__name__ for b in BREAKS])
def test_what_is_broken_is_found(check, made, found):
    with pytest.raises(Broken) as raised:
        checks("model")[check](of(made))
    assert found in str(raised.value)


def test_each_check_can_fail():
    assert {check for check, _, _ in BREAKS} == checks("model").keys()
