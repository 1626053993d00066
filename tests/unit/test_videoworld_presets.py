"""VideoWorld's presets: what they build, in millions of parameters."""

import pytest
import torch

from latentplan import config, registry
from latentplan.models.videoworld.dynamics import TokenDynamics
from latentplan.models.videoworld.inverse_dynamics import InverseDynamics
from latentplan.models.videoworld.ldm import LDM
from latentplan.models.videoworld.stages import token_spec
from latentplan.models.videoworld.video_transformer import VideoTransformer
from latentplan.models.videoworld.videoworld import VideoWorld
from latentplan.types import ActionSpec, ArraySpec, Spec

PARTS = ("tokenizer", "ldm", "body", "transformer", "inverse", "dynamics")
# preset: pixels a side, tokens of two cameras, millions in each part; the body is the transformer's
# transformer alone, without what embeds and says the words of its vocabulary
BUILT = {
    "videoworld_tiny": (64, 32, (0.462, 0.91, 0.222, 0.52, 0.108, 0.0223)),
    "videoworld_cpu": (64, 512, (0.246, 0.746, 0.804, 1.71, 0.93, 0.24)),
    "videoworld_coarse": (64, 128, (0.672, 0.746, 0.804, 1.54, 0.93, 0.24)),
    "videoworld_gpu": (64, 512, (5.11, 10.7, 25.3, 31.1, 2.93, 3.2)),
    "videoworld_paper": (256, 32, (42.4, 42.3, 302, 565, 1.6, 16.9)),
}


def millions(network: torch.nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


@pytest.mark.parametrize("preset", BUILT)
def test_a_preset_has_so_many_parameters(preset):
    side, tokens, parts = BUILT[preset]
    spec = Spec(
        {f"rgb_{name}": ArraySpec((side, side, 3), "uint8") for name in ("static", "gripper")},
        ActionSpec((-1.0,) * 7, (1.0,) * 7),
    )
    chosen = config.resolve("model", preset)
    settings = config.load(
        {"model": VideoWorld.Config, "training": VideoWorld.Training}, preset=chosen.values
    )
    c = settings["model"].fitted(spec, tasks=("open_drawer",))
    tokenizer, ldm = registry.build(c.tokenizer, spec), LDM(spec, c.ldm)
    with torch.device("meta"):  # no memory for weights
        of_tokens = token_spec(spec, tokenizer, ldm)
        transformer = VideoTransformer(of_tokens, c.transformer)
        inverse = InverseDynamics(of_tokens, c.inverse, transformer=transformer)
        dynamics = TokenDynamics(of_tokens, c.dynamics)
    found = {
        "tokenizer": millions(tokenizer),
        "ldm": millions(ldm),
        "body": millions(transformer.body),
        "transformer": millions(transformer),
        "inverse": millions(inverse) - millions(transformer),
        "dynamics": millions(dynamics),
    }
    assert tokenizer.tokens == tokens
    assert found == pytest.approx(dict(zip(PARTS, parts, strict=True)), rel=0.1)
