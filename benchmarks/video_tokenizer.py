"""The tokenizer of a trained run for one of its cameras, for `model.tokenizer.run`.

    python benchmarks/video_tokenizer.py tabletop-videoworld rgb_static runs/tokenizer

Cameras share the layers of `vqvae`; embeddings of a camera and its places, and its mean image, are
its own.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from latentplan.tokenizers.vqvae import VQVAE
from latentplan.training import checkpoint

OWN = ("camera", "position", "mean")  # weights (cameras, ...)


def main() -> None:
    """Write the tokenizer of one camera into a run folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("camera")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    found = checkpoint.load(checkpoint.find(given.run))  # the model knows the order of its cameras
    whole = found.model.tokenizer
    at = whole.images.index(given.camera)
    seen = {given.camera: whole.spec.observation[given.camera]}
    one = VQVAE(replace(whole.spec, observation=seen), replace(whole.config, images=()))
    weights = {
        key: value[at : at + 1] if key in OWN else value
        for key, value in whole.state_dict().items()
    }
    one.load_state_dict(weights)
    given.out.mkdir(parents=True, exist_ok=True)
    checkpoint.save(
        given.out / "best.safetensors",
        one,
        kind="tokenizer",
        name="vqvae",
        step=found.step,
        metrics=found.metrics,
    )


if __name__ == "__main__":
    main()
