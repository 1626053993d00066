"""What models on tokens of frames share."""

import pytest

from latentplan.models.frame_tokens import ordered
from latentplan.models.lwm.lwm import LWM
from latentplan.models.teco.teco import TECO
from latentplan.tokenizers.vqvae import VQVAE
from latentplan.types import ActionSpec, ArraySpec, Part, Spec


@pytest.mark.parametrize("kind", [TECO, LWM])
def test_a_tokenizer_that_is_given_keeps_its_order_of_cameras_when_it_is_built_again(kind):
    images = {key: ArraySpec((32, 32, 3), "uint8") for key in ("static", "gripper")}
    spec = Spec(images, ActionSpec((-1.0,), (1.0,)))
    turned = Spec(dict(reversed(images.items())), spec.action)
    small = VQVAE.Config(patch=4, channels=(16,))
    config = kind.Config(tokenizer=Part("tokenizer", "vqvae", small))
    model = kind(spec, config, tokenizer=VQVAE(turned, small))
    assert model.config.images == ("gripper", "static")
    assert kind(spec, model.config).tokenizer.images == ("gripper", "static")


def test_without_a_tokenizer_the_cameras_keep_the_order_of_the_config():
    config = TECO.Config(images=("static", "gripper"))
    assert ordered(config, None) is config
