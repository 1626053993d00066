"""What the baselines learn, each beside what its paper says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import BOX
from toy import ToyEnv
from trainings import small

import latentplan
from latentplan import registry
from latentplan.conformance import data
from latentplan.errors import ConfigError
from latentplan.models.autoencoder import Autoencoder
from latentplan.models.jepa import JEPA, sigreg, vicreg
from latentplan.models.joint import Joint
from latentplan.models.keypoints import Keypoints
from latentplan.models.pixel import Pixel
from latentplan.models.planet import PlaNet
from latentplan.nn import symmetry
from latentplan.nn.decoder import ImageDecoder
from latentplan.objectives.goal import GoalDistance
from latentplan.protocols import EquivariantEncoder
from latentplan.types import ActionSpec, ArraySpec, Batch, Context, Goal, Spec

SMALL = {"channels": (8, 8), "strides": (2, 2), "latent": 8}
ENCODING = {
    "autoencoder": (Autoencoder, {**SMALL, "hidden": (16,)}),
    "joint": (Joint, {**SMALL, "hidden": (16,)}),
    "jepa": (JEPA, {**SMALL, "hidden": (16,)}),
    "planet": (PlaNet, {**SMALL, "hidden": (16,), "recurrent": 8}),
}
POINTS = Spec(
    {"keypoints": ArraySpec((4, 2), "float32", "m")},
    ActionSpec((-1.0,) * 2, (1.0,) * 2),
    privileged=("keypoints",),
)


def windows(batch: int = 8, length: int = 5, spec: Spec = BOX) -> Batch:
    return Batch(data.observations(spec, batch, length), data.actions(spec, batch, length - 1))


def fitted(model, batch: Batch, *, steps: int, rate: float = 3e-3):
    """Return the parts of the loss before and after some steps on one batch."""
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), rate)
    first = model.loss(batch).parts
    for _ in range(steps):
        optimiser.zero_grad()
        model.loss(batch).total.backward()
        optimiser.step()
    return first, model.loss(batch).parts


@pytest.mark.parametrize("name", ENCODING)
def test_latents_of_turned_images_are_the_views_that_calibrated_trains_on(name):
    build, settings = ENCODING[name]
    model = build(BOX, build.Config(**settings)).eval()
    batch = windows()
    assert isinstance(model, EquivariantEncoder) and model.elements == symmetry.ELEMENTS
    with torch.no_grad():
        views = model.encode_views(batch.observations)  # b t g d
        seen, actions = model.turned(batch)
        row = torch.arange(8)
        torch.testing.assert_close(model.encode(seen), views[row, :, row])
        torch.testing.assert_close(actions, model.turn_actions(batch.actions, row))
    assert not torch.equal(actions[1:], batch.actions[1:])
    plain = build(replace(BOX, planar=None), build.Config(**settings))
    seen, actions = plain.turned(batch)
    assert plain.elements == 1 and seen is batch.observations
    torch.testing.assert_close(actions, batch.actions)


@pytest.mark.parametrize("size", [(8, 8, 3), (33, 20, 1), (64, 64, 4)])
def test_a_decoder_makes_images_of_any_size(size):
    spec = Spec({"a.b": ArraySpec(size, "uint8"), "state": ArraySpec((3,))}, BOX.action)
    decoder = ImageDecoder("Model", spec, ("a.b", "state"), latent=5, channels=(8, 16))
    z = torch.randn(2, 3, 5)
    assert decoder(z)["a.b"].shape == (2, 3, size[2], *size[:2])
    assert decoder.to_uint8(z)["a.b"].shape == (2, 3, *size)
    with pytest.raises(ConfigError, match="Model: the data have no images"):
        ImageDecoder("Model", spec, ("state",), latent=5, channels=(8,))


@pytest.mark.parametrize("name", ["autoencoder", "planet"])
def test_reconstructions_become_like_the_images(name):
    build, settings = ENCODING[name]
    torch.manual_seed(0)
    model = build(BOX, build.Config(**settings, symmetric=False))
    batch = windows(batch=2)
    first, last = fitted(model, batch, steps=60, rate=1e-2)
    assert last["image"] < 0.5 * first["image"]
    decoded = model.decode(model.encode(batch.observations))["rgb"]
    assert decoded.shape == batch.observations["rgb"].shape and decoded.dtype == torch.uint8


def test_joint_learns_which_action_lies_between_and_says_how_far_latents_are_spread():
    torch.manual_seed(0)
    model = Joint(BOX, Joint.Config(**ENCODING["joint"][1], symmetric=False))
    first, last = fitted(model, windows(), steps=60)
    assert last["action"] < 0.5 * first["action"] and last["spread"] > 0.1
    with torch.no_grad():
        model.encoder.output.weight.zero_()  # collapsed: all latents are one point
    assert model.loss(windows()).parts["spread"] == 0


def test_the_terms_against_collapse_are_least_for_a_standard_normal():
    torch.manual_seed(0)
    normal = torch.randn(2000, 6)
    others = {
        "narrow": 0.2 * normal,
        "wide": 3 * normal,
        "one direction": normal[:, :1].expand(-1, 6),
        "a point": torch.zeros(2000, 6),
    }
    for term in (sigreg, vicreg):
        least = term(normal)
        for name, z in others.items():
            if (term, name) != (vicreg, "wide"):  # its hinge is one-sided
                assert term(z) > 5 * least, (term.__name__, name)
    skewed = torch.distributions.Exponential(1.0).sample((2000, 6)) - 1
    assert sigreg(skewed) > 5 * sigreg(normal)  # by its shape: mean and covariance are a normal's
    assert vicreg(skewed) < 0.05


def test_sigreg_is_the_statistic_of_epps_and_pulley():
    torch.manual_seed(0)
    x = torch.randn(50, 1)  # every direction is +-1, under which the statistic is the same
    t = torch.linspace(-3, 3, 4001, dtype=torch.float64)
    found = torch.exp(1j * t * x.double()).mean(0) - torch.exp(-t.square() / 2)
    exact = 50 * torch.trapezoid(found.abs().square() * torch.exp(-t.square() / 2), t)
    assert sigreg(x) == pytest.approx(float(exact), rel=0.02)


@pytest.mark.parametrize("against", ["sigreg", "vicreg"])
def test_jepa_keeps_its_latents_apart(against):
    torch.manual_seed(0)
    config = {**ENCODING["jepa"][1], "against": against, "symmetric": False}
    kept = fitted(JEPA(BOX, JEPA.Config(**config, weight=1.0)), windows(), steps=60)[1]["spread"]
    lost = fitted(JEPA(BOX, JEPA.Config(**config, weight=0.0)), windows(), steps=60)[1]["spread"]
    assert kept > 3 * lost
    with pytest.raises(ConfigError, match="JEPA.against: 'ema' is not one of sigreg, vicreg"):
        JEPA.Config(against="ema")


def test_planet_plans_from_past_actions_and_encodes_a_goal_without_any():
    torch.manual_seed(0)
    build, settings = ENCODING["planet"]
    model = build(BOX, build.Config(**settings, context=3)).eval()
    z = model.encode(data.observations(BOX, 1, 3))
    ahead = data.actions(BOX, 1, 2, 2)
    past = data.actions(BOX, 1, 2)
    one = model.rollout(model.prepare(Context(z, past)), ahead)
    other = model.rollout(model.prepare(Context(z, -past)), ahead)
    assert not torch.allclose(one, other)
    alone = model.encode({"rgb": data.observations(BOX, 1, 3)["rgb"][:, 1:2]})
    torch.testing.assert_close(alone, z[:, 1:2])


def test_pixels_are_the_latents_of_pixel_and_their_distance_is_that_of_images():
    spec = replace(BOX, observation={**BOX.observation, "side": ArraySpec((16, 20, 1), "uint8")})
    model = Pixel(spec, Pixel.Config(size=8, channels=(8, 8))).eval()
    seen = data.observations(spec, 2, 3)
    z = model.encode(seen)
    assert z.shape == (2, 3, 4 * 64) and model.elements == 1
    whole = seen["rgb"].float().view(2, 3, 8, 4, 8, 4, 3).mean((3, 5)) / 127.5 - 1  # b t y x c
    torch.testing.assert_close(z.view(2, 3, 4, 8, 8)[:, :, :3], whole.movedim(-1, 2))
    assert {key: image.shape for key, image in model.decode(z).items()} == {
        "rgb": (2, 3, 8, 8, 3),
        "side": (2, 3, 8, 8, 1),
    }


def test_a_goal_of_keypoints_is_reached_in_either_order():
    model = Keypoints(POINTS, Keypoints.Config(orders="line", hidden=(8,)))
    points = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    z = model.encode({"keypoints": torch.from_numpy(points)[None, None]})
    context = Context(z, torch.zeros(1, 0, 2))
    actions = torch.zeros(1, 1, 1, 2)
    for order, cost in ((points, 0.0), (points[::-1], 0.0), (points[[1, 0, 2, 3]], None)):
        objective = GoalDistance()(Goal({"keypoints": order.copy()}), context, model)
        found = objective(z[:, None], actions)
        assert found == 0 if cost == 0.0 else found > 0.1
    grid = Keypoints(POINTS, Keypoints.Config(orders="grid", hidden=(8,)))
    assert grid.elements == 8 and len({tuple(order.tolist()) for order in grid.orders}) == 8
    odd = replace(POINTS, observation={"keypoints": ArraySpec((5, 2))})
    with pytest.raises(ConfigError, match="found grid and 5 points, need a square grid"):
        Keypoints(odd, Keypoints.Config(orders="grid"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "toy.zarr"
    latentplan.collect(ToyEnv, out=out, episodes=10, workers=0, overrides={"length": 12})
    return out


FEW = {"steps": 2, "batch": 4, "warmup": 1, "eval_every": 2, "save_every": 2, "held_out": 0.2}


@pytest.mark.parametrize("name", sorted({*ENCODING, "cfm", "keypoints", "pixel"}))
def test_every_model_is_a_base_of_calibrated(name: str, store: Path, tmp_path: Path) -> None:
    parts = {f"training.{stage}": FEW for stage in ("base", "dynamics", "inverse")}
    own = [each.replace("model.", "model.base.") for each in small(name)]
    found = latentplan.train(
        "calibrated",
        data=store,
        run=tmp_path / "run",
        overrides=[
            f"model.base={name}",
            *own,
            *("model.dynamics.hidden=[8]", "model.inverse.hidden=[8]", "model.dynamics.ahead=2"),
            *(f"{part}.{key}={value}" for part, few in parts.items() for key, value in few.items()),
        ],
    )
    assert np.isfinite(found.figures["dynamics.error_1"])
    policy = latentplan.load(found.folder)  # beam, over the proposals of the inverse model
    env = ToyEnv()
    goal, _ = env.reset(seed=1)
    start, _ = env.reset(seed=0)
    policy.reset(Goal(observation=goal), seed=0)
    assert np.isfinite(policy.act(start)).all()
    assert policy.privileged == (("keypoints",) if name == "keypoints" else ())
    assert registry.get("model", name)  # by its own name


def test_a_model_of_simulator_state_declares_it_everywhere(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    few = [f"training.{key}={value}" for key, value in FEW.items()]
    latentplan.train("keypoints", data=store, run=run, overrides=[*few, "hidden=[8]"])
    policy = latentplan.load(run)
    assert policy.model.spec.privileged == policy.privileged == ("keypoints",)
    found = latentplan.evaluate(
        run, env=ToyEnv, episodes=1, out=out, overrides=["length=2", "states=0"]
    )
    assert found.settings["privileged"] == ["keypoints"]
    assert '"privileged"' in (out / "metrics.json").read_text()
    assert "reads keypoints of the simulator" in (out / "report.html").read_text()
    from latentplan.commands.plan import show

    show(found)
    assert "the model reads keypoints of the simulator: a bound" in capsys.readouterr().out
    honest = tmp_path / "honest"
    latentplan.train("joint", data=store, run=honest, overrides=[*few, *small("joint")])
    tried = latentplan.evaluate(
        honest, env=ToyEnv, episodes=1, overrides=["length=2", "states=0"]
    )
    assert tried.settings["privileged"] == []
    borrowed = latentplan.load(honest)  # of images alone, so that points are not asked for
    env = ToyEnv()
    seen, _ = env.reset(seed=0)
    borrowed.reset(Goal(observation={"rgb": seen["rgb"]}), seed=0)
    assert borrowed.act({"rgb": seen["rgb"]}).shape == (4,)


def test_keypoints_of_data_that_measure_them_are_public(tmp_path: Path) -> None:
    spec = replace(POINTS, privileged=())
    assert Keypoints(spec).spec.privileged == ()
    with pytest.raises(ConfigError, match="Keypoints: the data have no 'keypoints', only rgb"):
        Keypoints(BOX)
