"""CFM: the loss on cases with a known value, the paper's sizes, exact symmetry."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from latentplan import config
from latentplan.errors import ConfigError
from latentplan.models.cfm import CFM
from latentplan.nn import symmetry
from latentplan.training import checkpoint
from latentplan.types import (
    ActionSpec,
    ArraySpec,
    Batch,
    Context,
    PickSpec,
    PlanarSpec,
    Spec,
    Training,
)

SPEC = Spec(
    observation={"rgb": ArraySpec((64, 64, 3), "uint8")}, action=ActionSpec((-1.0,) * 4, (1.0,) * 4)
)
PAPER = CFM.Config(  # what configs/model/cfm_paper.yaml says
    latent=8,
    channels=(64, 64, 64, 128, 256, 256),
    strides=(1, 2, 1, 2, 2, 2),
    dynamics="locally_linear",
    hidden=(64, 64),
    negatives="current",
    ahead=1,
    symmetric=False,
)


def test_the_paper_preset_is_the_paper():
    preset = config.resolve("model", "cfm_paper")
    sections = {"model": CFM.Config, "training": Training}
    assert config.load(sections, preset=preset.values)["model"] == PAPER


def pixel(x, y, size=64):
    """Return a dark image with a bright pixel at action coordinates (x, y)."""
    picture = torch.zeros(size, size, 3, dtype=torch.uint8)
    picture[round((1 - y) / 2 * size - 0.5), round((x + 1) / 2 * size - 0.5)] = 255
    return picture


@pytest.mark.parametrize("element", range(symmetry.ELEMENTS))
def test_pictures_and_vectors_turn_alike(element):
    point = torch.tensor([0.515625, -0.234375])  # centre of a pixel
    picture = pixel(*point.tolist()).permute(2, 0, 1)
    x, y = symmetry.turn_vectors(point, symmetry.matrices()[element], [(0, 1)]).tolist()
    assert torch.equal(symmetry.turn_image(picture, element), pixel(x, y).permute(2, 0, 1))


def test_the_eight_elements_are_a_group_without_repeats():
    matrices = symmetry.matrices()
    products = (matrices[:, None] @ matrices[None]).reshape(-1, 4)
    assert len(torch.unique(matrices.reshape(-1, 4), dim=0)) == 8
    assert len(torch.unique(torch.cat([products, matrices.reshape(-1, 4)]), dim=0)) == 8


@pytest.mark.parametrize("size", [4, 5])  # five: the last is a height, which no turn changes
def test_costs_are_exactly_symmetric(size):
    torch.manual_seed(0)
    pairs = ((0, 1), (2, 3))
    action = ActionSpec((-1.0,) * size, (1.0,) * size)
    spec = replace(SPEC, action=action, planar=PlanarSpec("rgb", pairs))
    model = CFM(spec, CFM.Config(views=8)).eval()
    assert model.config.symmetric is True
    now, goal = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    actions = torch.rand(1, 6, 2, size) * 2 - 1

    def cost(turn):
        def z(picture):
            x = symmetry.turn_image(picture.permute(2, 0, 1), turn).permute(1, 2, 0)
            return model.encode({"rgb": x[None, None]})

        turned = symmetry.turn_vectors(actions, symmetry.matrices()[turn], pairs)
        assert torch.equal(turned[..., 4:], actions[..., 4:])
        start = model.prepare(Context(z(now), turned[:, 0, :0]))
        return (model.rollout(start, turned) - z(goal)[:, None]).square().sum(-1)

    for turn in range(1, 8):
        torch.testing.assert_close(cost(turn), cost(0), rtol=1e-4, atol=1e-5)


def test_the_papers_network_has_the_papers_size():
    model = CFM(SPEC, PAPER)
    encoder = sum(p.numel() for p in model.encoder.parameters())
    dynamics = sum(p.numel() for p in model.dynamics.parameters())
    assert encoder == pytest.approx(1.84e6, rel=0.01)
    assert dynamics == pytest.approx(9e3, rel=0.1)


class Position(nn.Module):
    """Reads a latent of two numbers off the first pixel."""

    keys = ("rgb",)

    def forward(self, observations):
        return observations["rgb"][:, :, 0, 0, :2].float() / 127.5 - 1


class Same(nn.Module):
    def forward(self, z, action):
        return z


@pytest.mark.parametrize("negatives", ["next", "current"])
def test_the_loss_of_known_latents(negatives):
    model = CFM(SPEC, CFM.Config(latent=2, negatives=negatives, symmetric=False))
    model.encoder, model.dynamics = Position(), Same()
    same = torch.zeros(5, 2, 64, 64, 3, dtype=torch.uint8)
    batch = Batch({"rgb": same}, torch.zeros(5, 1, 4))
    assert model.loss(batch).total.item() == pytest.approx(math.log(5))  # chance
    apart = same.clone()
    for i in range(5):
        apart[i, ..., 0] = 50 * i  # 50 / 127.5 apart; now equals next
    gap = 50 / 127.5
    logits = [[-((gap * (i - j)) ** 2) for j in range(5)] for i in range(5)]
    want = sum(math.log(sum(map(math.exp, row))) - row[i] for i, row in enumerate(logits)) / 5
    assert model.loss(Batch({"rgb": apart}, batch.actions)).total.item() == pytest.approx(want)


def test_steps_ahead_compare_with_the_right_pictures():
    class Plus(nn.Module):
        def forward(self, z, action):
            return z + action[..., :2]

    model = CFM(SPEC, CFM.Config(latent=2, ahead=3, symmetric=False))
    model.encoder, model.dynamics = Position(), Plus()
    values = torch.tensor([[0, 10, 30, 70, 150], [250, 240, 200, 100, 20]], dtype=torch.uint8)
    picture = values[..., None, None, None].expand(2, 5, 64, 64, 3)
    actions = torch.zeros(2, 4, 4)
    actions[..., :2] = (values.float().diff(dim=1) / 127.5)[..., None]
    logits = []
    model._logits = lambda ahead, now, after: (
        logits.append((ahead, after)) or torch.eye(ahead.shape[0] * ahead.shape[1])
    )
    model.loss(Batch({"rgb": picture}, actions))
    assert len(logits) == 3
    for ahead, after in logits:
        torch.testing.assert_close(ahead, after)


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"latent": 0}, "CFM.latent"),
        ({"strides": (2, 2)}, "CFM.strides"),
        ({"dynamics": "linear"}, "CFM.dynamics.*residual"),
        ({"negatives": "all"}, "CFM.negatives.*current"),
        ({"ahead": 0}, "CFM.ahead"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        CFM.Config(**settings)


def test_other_numbers_than_the_stated_pairs_never_turn():
    spec = replace(
        SPEC,
        observation={**SPEC.observation, "wrist": ArraySpec((64, 64, 3), "uint8")},
        action=ActionSpec((-1.0,) * 7, (1.0,) * 7),
        planar=PlanarSpec("rgb", ((4, 1),)),
    )
    actions = torch.rand(5, 7)
    quarter = symmetry.matrices()[1]
    turned = symmetry.turn_vectors(actions, quarter, spec.planar.pairs)
    kept = [0, 2, 3, 5, 6]
    assert torch.equal(turned[:, kept], actions[:, kept])
    assert torch.equal(turned[:, 4], -actions[:, 1]) and torch.equal(turned[:, 1], actions[:, 4])
    for observe, symmetric in ((("rgb",), True), (("wrist",), False), ((), False)):
        config = CFM.Config(latent=2, observe=observe)
        assert CFM(spec, config).config.symmetric is symmetric


def test_without_planar_vectors_there_is_no_symmetry():
    picks = replace(SPEC, pick=PickSpec("rgb", (0, 0, 0)))
    for spec in (SPEC, picks):
        assert CFM(spec, CFM.Config(latent=2)).config.symmetric is False
        with pytest.raises(ConfigError, match=r"CFM.symmetric: found true .*set it to auto or f"):
            CFM(spec, CFM.Config(latent=2, symmetric=True))
        with pytest.raises(ConfigError, match="CFM.views"):
            CFM(spec, CFM.Config(latent=2, views=8))


def test_only_what_is_read_is_asked_for():
    more = {"state": ArraySpec((7,)), "front": ArraySpec((32, 32, 3), "uint8")}
    spec = replace(SPEC, observation={**SPEC.observation, **more}, privileged=("state",))
    above = CFM.Config(observe=("rgb",))
    assert set(CFM(spec).spec.observation) == {"rgb", "front"}
    assert set(CFM(spec, above).spec.observation) == {"rgb"}
    picks = replace(spec, pick=PickSpec("front", (0, 0, 0)))  # which the planner segments
    assert set(CFM(picks, above).spec.observation) == {"rgb", "front"}


@pytest.mark.parametrize("views", [1, 8])
def test_a_checkpoint_of_before_acts_as_it_did(tmp_path, views):
    """It had one image, whose layers were a list, and turned all numbers of actions in pairs."""
    torch.manual_seed(0)
    turning = replace(SPEC, planar=PlanarSpec("rgb", ((0, 1), (2, 3))))
    model = CFM(turning, CFM.Config(latent=4, views=views)).eval()
    now, file = tmp_path / "now.safetensors", tmp_path / "best.safetensors"
    checkpoint.save(now, model, name="cfm", step=1, metrics={})
    tensors, header = checkpoint.read(now, format=checkpoint.FORMAT)
    settings = {"image": "rgb", **header["config"]}
    header["config"] = {k: v for k, v in settings.items() if k not in ("observe", "widths")}
    header["spec"]["planar"] = None
    names = {key: key.replace("sensors.0.layers.", "").replace("output", "9") for key in tensors}
    before = {names[key]: tensors[key] for key in tensors if not key.startswith("scaling")}
    assert {"encoder.0.weight", "encoder.6.bias", "encoder.9.weight"} < set(before)
    checkpoint.write(file, before, format=checkpoint.FORMAT, header=header)
    found = checkpoint.load(file).model
    assert found.config == model.config and found.spec == model.spec
    seen = {"rgb": torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8)}
    actions = torch.rand(2, 3, 2, 4)
    z = model.encode(seen)
    assert torch.equal(found.encode(seen), z)
    context = Context(z, actions[:, 0, :0])
    assert torch.equal(
        found.rollout(found.prepare(context), actions),
        model.rollout(model.prepare(context), actions),
    )


def test_data_that_do_not_fit_are_named():
    odd = Spec(observation={"rgb": ArraySpec((48, 64, 3), "uint8")}, action=SPEC.action)
    above = replace(odd, planar=PlanarSpec("rgb", ((0, 1),)))
    assert CFM(above).config.symmetric is False
    with pytest.raises(ConfigError, match="CFM.symmetric: .* 48 x 64 pixels"):
        CFM(above, CFM.Config(symmetric=True))
    with pytest.raises(ConfigError, match="no observation 'front'"):
        CFM(SPEC, CFM.Config(observe=("front",)))
