"""The encoder: observations of every kind, alone and together, and stacked frames."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from point_world import KINDS, observe, spec

from latentplan.errors import ConfigError, ShapeError
from latentplan.models.cfm import CFM
from latentplan.models.latents import LATENTS, latents_of
from latentplan.nn.encoder import Encoder, EncoderConfig
from latentplan.planning.history import ObservationHistory
from latentplan.types import ArraySpec, Episode, PickSpec

SMALL = {"latent": 5, "channels": (4, 8), "strides": (2, 2), "widths": (8, 6)}
EVERY = tuple(KINDS)


def rows(keys, *, count: int, seed: int = 0):
    """Return observations (count, ...) of random positions."""
    rng = np.random.default_rng(seed)
    seen = [observe(rng.uniform(-1, 1, 2), keys, seed=t) for t in range(count)]
    return {key: np.stack([each[key] for each in seen]) for key in keys}


def batch(keys, *, size: int = 2, length: int = 3):
    found = rows(keys, count=size * length)
    return {
        key: torch.from_numpy(value).reshape(size, length, *value.shape[1:])
        for key, value in found.items()
    }


def test_latents_depend_on_every_observation():
    torch.manual_seed(0)
    encoder = Encoder(spec(EVERY), EncoderConfig(**SMALL))
    assert set(encoder.keys) == set(EVERY) and set(encoder.spec.observation) == set(EVERY)
    assert set(encoder.scaled) == set(EVERY) - {"front", "wrist"}
    seen = batch(EVERY)
    z = encoder(seen)
    assert z.shape == (2, 3, 5)
    for key in EVERY:
        other = {**seen, key: ~seen[key] if key == "open" else seen[key].roll(1, 0)}
        assert not torch.allclose(encoder(other), z), key


def test_the_order_of_points_and_of_keys_does_not_matter():
    encoder = Encoder(spec(("cloud",)), EncoderConfig(**SMALL))
    seen = batch(("cloud",))
    turned = {"cloud": seen["cloud"].flip(2)}
    assert torch.equal(encoder(seen), encoder(turned))
    backwards = spec(EVERY[::-1])
    assert Encoder(backwards, EncoderConfig(**SMALL)).keys == tuple(sorted(EVERY))


def test_only_the_observations_that_are_named_are_read():
    more = spec(EVERY)
    config = EncoderConfig(**SMALL, observe=("joints", "depth"))
    encoder = Encoder(more, config)
    assert encoder.keys == ("joints", "depth")  # as named
    assert encoder(batch(("joints", "depth"))).shape == (2, 3, 5)
    picks = replace(more, pick=PickSpec("front", (0, 0, 0)))
    assert set(Encoder(picks, config).spec.observation) == {"joints", "depth", "front"}
    hidden = replace(more, privileged=("joints",))
    assert "joints" not in Encoder(hidden, EncoderConfig(**SMALL)).keys
    with pytest.raises(ConfigError, match="EncoderConfig.observe: no observation 'joints'"):
        Encoder(hidden, config)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (ArraySpec((8, 8), "uint8"), "grey images a channel axis"),
        (ArraySpec((3, 8, 8), "uint8"), "channels come last"),
        (ArraySpec((8, 8, 3), "float32"), "multiply images"),
        (ArraySpec((2, 2, 2, 2)), "need an image uint8"),
        (ArraySpec((0,)), "need an image uint8"),
        (ArraySpec((2, 3, 3), "uint8"), "strides: .* leave nothing of 'odd', 2 x 3 pixels"),
        (ArraySpec((9, 2)), "strides: .* leave nothing of 'odd', 9 x 2 pixels"),
    ],
)
def test_other_shapes_are_refused_by_name(array, message):
    odd = replace(spec(("joints",)), observation={"odd": array})
    with pytest.raises(ConfigError, match=f"EncoderConfig.*'odd'.*{message}|{message}") as caught:
        Encoder(odd, EncoderConfig(**SMALL))
    assert "\n" not in str(caught.value)


def test_another_size_than_that_of_training_is_refused():
    encoder = Encoder(spec(("front",)), EncoderConfig(**SMALL))
    with pytest.raises(ShapeError, match=r"Encoder\['front'\]: found .*need \(B, T, 24, 32, 3\)"):
        encoder({"front": torch.zeros(1, 1, 32, 32, 3, dtype=torch.uint8)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent": 0}, "latent"),
        ({"frames": 0}, "frames"),
        ({"widths": ()}, "widths: found none"),
        ({"widths": (0,)}, "widths"),
        ({"strides": (3, 2)}, "strides"),
        ({"observe": ("joints", "joints")}, "observe: .* need each key once"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Encoder(spec(("joints",)), EncoderConfig(**{**SMALL, **settings}))


@pytest.mark.parametrize("key", EVERY)
def test_planning_encodes_the_frames_that_training_does(key):
    torch.manual_seed(0)
    model = CFM(spec((key,)), CFM.Config(**SMALL, hidden=(8,), frames=3)).eval()
    assert (model.frames, model.window) == (3, 4)
    seen = rows((key,), count=6)
    with torch.no_grad():
        z = model.encode({key: torch.from_numpy(seen[key])[None]})[0]
    history = ObservationHistory(model)
    for t in range(6):
        now = {key: seen[key][t]}
        if t and not np.array_equal(now[key], seen[key][t - 1]):  # of the last one, its context
            at = history.context_at("test", now)
            torch.testing.assert_close(at.latents[0, 0], z[t])
        history.observe("test", now)
        torch.testing.assert_close(history.context().latents[0, 0], z[t])
    # Two observations of the past change a latent, those before them do not.
    with torch.no_grad():
        for back, changes in ((2, True), (3, False)):
            other = torch.from_numpy(seen[key])[None].clone()
            other[0, 5 - back] = ~other[0, 5 - back] if key == "open" else other[0, 0]
            same = torch.allclose(model.encode({key: other})[0, 5], z[5], atol=1e-6)
            assert same is not changes
    history.clear()
    history.observe("test", {key: seen[key][4]})
    with torch.no_grad():
        alone = model.encode({key: torch.from_numpy(seen[key][4:5])[None]})[0, 0]
    torch.testing.assert_close(history.context().latents[0, 0], alone)


def test_frames_of_one_episode_are_not_stacked_on_those_of_another():
    model = CFM(spec(("joints",)), CFM.Config(**SMALL, hidden=(8,), frames=2)).eval()
    episodes = [
        Episode(rows(("joints",), count=4, seed=n), np.zeros((3, 2), np.float32), np.zeros(3))
        for n in range(3)
    ]
    together = list(latents_of(episodes, model))
    for episode, found in zip(episodes, together, strict=True):
        (alone,) = latents_of([episode], model)
        assert np.array_equal(found.observations[LATENTS], alone.observations[LATENTS])


def test_weights_of_any_name_are_left_as_they_are():
    encoder = Encoder(spec(("front",)), EncoderConfig(**SMALL))
    for name in ("", ".", "².weight", "9" * 5000 + ".bias", "output.weight", "0"):
        assert encoder.upgraded_weights({name: 1}) == {name: 1}
