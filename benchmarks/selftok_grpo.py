"""Post-train a policy over image tokens by GRPO, on Selftok's tokens and on a raster's.

    python benchmarks/selftok_grpo.py data --data blobs.zarr
    python benchmarks/selftok_grpo.py train --data blobs.zarr --run runs/blobs-selftok \
      --grid runs/blobs-vqvae

The toy of visual reinforcement learning: a picture has a red and a green blob, a command names one
of CELLS x CELLS cells, and the reward is 1 if the red blob of the decoded picture is in it. A
policy p(token | tokens before, command) is first fitted to pictures that follow the command with
probability FOLLOWS, then post-trained on its own samples (Selftok-Zero, arXiv 2505.07538, section
4.2): advantages are normalised in groups of GROUP samples of one command, without an importance
ratio, and the divergence from the fitted policy costs KL. All is equal for both tokenizers. `train`
writes section `grpo` of benchmarks/selftok.json.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from selftok import KEY, load, write
from torch import Tensor, nn

from latentplan.data.store import ZarrStore
from latentplan.evaluation.provenance import provenance
from latentplan.nn.transformer import Growing, Transformer
from latentplan.types import ActionSpec, Array, ArraySpec, Episode, Spec, Tokens

SIDE, CELLS, PICTURES, LENGTH = 32, 4, 4000, 20
RADII, LEAST = (4.0, 6.0), 10  # pixels; fewest red ones that are a blob
FOLLOWS = 0.3  # share of the pictures that follow their command
WIDTH, LAYERS, HEADS = 64, 2, 4
FITTED, FIT_BATCH, FIT_RATE = 400, 64, 3e-3
UPDATES, COMMANDS, GROUP, RATE, KL = 90, 4, 16, 1e-3, 0.04
SEEDS, TESTED = (0, 1, 2), 256  # of fit and post-training; samples of a success rate
EVERY = 30  # updates between success rates


def main() -> None:
    """Make the pictures, or post-train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", choices=("data", "train"))
    for name in ("data", "run", "grid"):
        parser.add_argument(f"--{name}", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.section == "data":
        make_data(chosen.data)
        return
    tokenizers = {"selftok": load(chosen.run), "vqvae": load(chosen.grid)}
    images = stored_images(chosen.data)
    found: dict[str, Any] = {"group": GROUP, "updates": UPDATES, "seeds": list(SEEDS), "runs": {}}
    for name, tokenizer in tokenizers.items():
        found["runs"][name] = [trial(tokenizer, images, seed) for seed in SEEDS]
        found[name] = summary(found["runs"][name])
    gains = [[x["success"][-1] - x["success"][0] for x in found["runs"][n]] for n in tokenizers]
    found["gain_selftok_minus_vqvae"] = t_interval(np.subtract(*gains))
    write("grpo", found | {"provenance": provenance()})


def make_data(path: Path) -> None:
    """Write a store of pictures, LENGTH an episode."""
    draw = np.random.default_rng(0)
    spec = Spec({KEY: ArraySpec((SIDE, SIDE, 3), "uint8")}, ActionSpec((0.0,), (1.0,), "none"))
    with ZarrStore.create(path, spec) as store:
        for _ in range(PICTURES // LENGTH):
            pictures = np.stack([picture(draw) for _ in range(LENGTH)])
            store.append(Episode(
                {KEY: pictures}, np.zeros((LENGTH - 1, 1), np.float32),
                np.zeros(LENGTH - 1, np.float32),
            ))  # fmt: skip


def picture(draw: np.random.Generator) -> Array:
    """Return a picture (SIDE, SIDE, 3) uint8: a green blob, and a red one that may cover it."""
    image = np.full((SIDE, SIDE, 3), draw.uniform(60, 160))
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    for colour in ([30, 180, 60], [230, 40, 40]):
        at, radius = draw.uniform(4, SIDE - 4, 2), draw.uniform(*RADII)
        inside = (y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2
        image[inside] = draw.uniform(0.8, 1.1) * np.array(colour)
    found: Array = image.clip(0, 255).astype(np.uint8)
    return found


def stored_images(path: Path) -> Tensor:
    """Return the pictures (n, h, w, 3) of a store."""
    with ZarrStore.open(path) as store:
        every = [store.episode(number).observations[KEY] for number in range(len(store))]
    return torch.from_numpy(np.concatenate(every))


def cell(images: Tensor) -> Tensor:
    """Return the cell (n,) of the red blob of images (n, h, w, 3) uint8; -1 without one."""
    red = images[..., 0].float() - images[..., 1:].amax(-1).float()
    mass = (red - 50).clamp(min=0)
    at = (torch.arange(SIDE) + 0.5) * CELLS / SIDE
    total = mass.sum((1, 2)).clamp(min=1e-6)
    y, x = ((mass.sum(axis) @ at / total).long().clamp(max=CELLS - 1) for axis in (2, 1))
    return torch.where((mass > 0).sum((1, 2)) >= LEAST, y * CELLS + x, -1)


class Policy(nn.Module):
    """A causal transformer over tokens, whose first position is the command."""

    def __init__(self, vocabulary: int, tokens: int) -> None:
        """Make the layers."""
        super().__init__()
        self.tokens = tokens
        self.command = nn.Embedding(CELLS**2, WIDTH)
        self.embed = nn.Embedding(vocabulary, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, WIDTH))
        self.body = Transformer(WIDTH, layers=LAYERS, heads=HEADS)
        self.head = nn.Linear(WIDTH, vocabulary)
        for layer in (self.command, self.embed, self.head):
            nn.init.normal_(layer.weight, std=0.02)

    def log_prob(self, ids: Tensor, command: Tensor) -> Tensor:
        """Return log-probabilities (n, K) of ids (n, K) under commands (n,)."""
        seen = torch.cat([self.command(command)[:, None], self.embed(ids[:, :-1])], dim=1)
        logits = self.head(self.body(seen + self.places))
        return -F.cross_entropy(logits.mT, ids, reduction="none")

    @torch.no_grad()
    def sample(self, command: Tensor) -> Tensor:
        """Return ids (n, K) for commands (n,)."""
        growing = Growing(self.body, len(command), self.tokens)
        seen, ids = self.command(command), []
        for place in self.places:
            logits = self.head(growing.read((seen + place)[:, None])[:, 0])
            ids.append(torch.multinomial(logits.softmax(-1), 1)[:, 0])
            seen = self.embed(ids[-1])
        return torch.stack(ids, dim=1)


@torch.no_grad()
def reward(tokenizer: Any, ids: Tensor, command: Tensor) -> Tensor:
    """Return 1. for each of ids (n, K) whose picture follows its command (n,), else 0."""
    shown = tokenizer.decode(Tokens(ids[:, None]))[KEY][:, 0]
    return (cell(shown) == command).float()


def trial(tokenizer: Any, images: Tensor, seed: int) -> dict[str, Any]:
    """Fit a policy and post-train it; return its success rates and the bound of the tokenizer."""
    torch.manual_seed(seed)
    with torch.no_grad():
        ids = torch.cat([tokenizer.encode({KEY: x[:, None]}).ids[:, 0] for x in images.split(100)])
    true = cell(images)
    policy = Policy(tokenizer.vocabulary, ids.shape[1])
    fit(policy, ids, true)
    before, success, parts = copy.deepcopy(policy), [rate(policy, tokenizer)], []
    optimizer = torch.optim.AdamW(policy.parameters(), RATE, weight_decay=0.0)
    for update in range(1, UPDATES + 1):
        command = torch.randint(CELLS**2, (COMMANDS,)).repeat_interleave(GROUP)
        tried = policy.sample(command)
        got = reward(tokenizer, tried, command).view(COMMANDS, GROUP)
        spread = got.std(1, keepdim=True)
        advantage = ((got - got.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()[:, None]
        logs = policy.log_prob(tried, command)
        with torch.no_grad():
            away = before.log_prob(tried, command)
        divergence = (away - logs).exp() - (away - logs) - 1
        loss = (KL * divergence - advantage * logs).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        parts.append(float(divergence.detach().mean()))
        if update % EVERY == 0:
            success.append(rate(policy, tokenizer))
    return {
        "seed": seed,
        "success": success,
        "divergence": round(float(np.mean(parts[-EVERY:])), 4),
        "bound": float(reward(tokenizer, ids[true >= 0], true[true >= 0]).mean()),
    }


def fit(policy: Policy, ids: Tensor, true: Tensor) -> None:
    """Fit a policy to pictures, a share of which follow their command."""
    seen = true >= 0
    ids, true = ids[seen], true[seen]
    optimizer = torch.optim.AdamW(policy.parameters(), FIT_RATE)
    for _ in range(FITTED):
        rows = torch.randint(len(ids), (FIT_BATCH,))
        follows = torch.rand(FIT_BATCH) < FOLLOWS
        command = torch.where(follows, true[rows], torch.randint(CELLS**2, (FIT_BATCH,)))
        loss = -policy.log_prob(ids[rows], command).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def rate(policy: Policy, tokenizer: Any) -> float:
    """Return the share of sampled pictures that follow their command."""
    command = torch.arange(TESTED) % CELLS**2
    return float(reward(tokenizer, policy.sample(command), command).mean())


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and intervals over seeds."""
    rates = np.array([x["success"] for x in runs])
    return {
        "before": t_interval(rates[:, 0]),
        "after": t_interval(rates[:, -1]),
        "gain": t_interval(rates[:, -1] - rates[:, 0]),
        "bound": runs[0]["bound"],
    }


def t_interval(x: Array) -> dict[str, Any]:
    """Return the mean of x (n,) and its interval by Student's t."""
    from scipy.stats import t

    half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    mean = float(x.mean())
    return {"value": round(mean, 4), "interval": [round(mean - half, 4), round(mean + half, 4)]}


if __name__ == "__main__":
    main()
