"""Behaviour cloning: the baseline of VideoWorld that is trained on all actions.

    python benchmarks/videoworld_cloning.py --data demos.zarr --out cloned.safetensors

A small convolutional network predicts the action from both cameras' images and the task id, by
supervised learning. Its closed-loop success is a reference for a model that learns latent actions
from the same demonstrations.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentplan.data.store import ZarrStore
from latentplan.data.windows import is_test
from latentplan.files import replacing
from latentplan.sim.tabletop.tasks import TASKS

CAMERAS = ("rgb_static", "rgb_gripper")
HELD_OUT = 0.1  # share of the episodes, the same as in VideoWorld's stages
SIGNS = 0.2  # weight of the gripper's cross-entropy relative to the motion's error


class CameraEncoder(nn.Module):
    """Encoder of an image by spatial softmax (Levine et al., arXiv 1504.00702) and pooling."""

    def __init__(self, tasks: int, width: int = 32) -> None:
        """Build the layers; an embedding of the task scales and shifts the features."""
        super().__init__()
        self.first = nn.Conv2d(3, 16, 5, 2, 2)
        self.second = nn.Conv2d(16, width, 3, 2, 1)
        self.third = nn.Conv2d(width, width, 3, 1, 1)
        self.condition = nn.Embedding(tasks, 4 * width)
        nn.init.zeros_(self.condition.weight)
        self.sharp = nn.Parameter(torch.zeros(()))  # log inverse temperature of the softmax
        self.pooled = nn.Conv2d(width, 16, 3, 2, 1)

    def forward(self, image: Tensor, task: Tensor) -> Tensor:
        """Return features (n, 2 width + 16 8 8) of images (n, 3, 64, 64) in [-1, 1]."""
        scale, shift, scale_2, shift_2 = self.condition(task)[:, :, None, None].chunk(4, dim=1)
        x = self.second(F.relu(self.first(image)))
        x = F.relu(x * (1 + scale) + shift)
        x = self.third(x) * (1 + scale_2) + shift_2  # n c y x
        side = x.shape[-1]
        share = (x * self.sharp.exp()).flatten(2).softmax(-1).view(x.shape)
        axis = torch.linspace(-1, 1, side, device=x.device)
        position = torch.cat([(share.sum(2) * axis).sum(-1), (share.sum(3) * axis).sum(-1)], dim=1)
        return torch.cat([position, F.relu(self.pooled(F.relu(x))).flatten(1)], dim=1)


class Cloned(nn.Module):
    """Network that predicts the demonstrator's action (A,) from both images and the task."""

    def __init__(self, actions: int = 7, tasks: int = len(TASKS)) -> None:
        """Build the layers."""
        super().__init__()
        self.eyes = nn.ModuleList(CameraEncoder(tasks) for _ in CAMERAS)
        self.task = nn.Embedding(tasks, 32)
        size = len(CAMERAS) * (64 + 16 * 64) + 32
        self.head = nn.Sequential(
            nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, actions)
        )

    def forward(self, images: Tensor, task: Tensor) -> Tensor:
        """Return raw actions (n, A) for images (n, cameras, h, w, 3) uint8 and tasks (n,)."""
        scaled = images.float().div(127.5).sub(1).movedim(-1, 2)  # n v 3 h w
        features = [encoder(scaled[:, view], task) for view, encoder in enumerate(self.eyes)]
        raw: Tensor = self.head(torch.cat([*features, self.task(task)], dim=1))
        return raw

    @torch.no_grad()
    def act(self, images: Tensor, task: Tensor) -> Tensor:
        """Return actions (n, A) in [-1, 1]; the gripper's is -1 or 1."""
        raw = self(images, task)
        return torch.cat([raw[:, :-1].clamp(-1, 1), raw[:, -1:].sign()], dim=1)


def error(raw: Tensor, wanted: Tensor) -> Tensor:
    """Return the loss () of raw actions: smooth L1 of the motion, cross-entropy of the gripper."""
    motion = F.smooth_l1_loss(raw[:, :-1], wanted[:, :-1], beta=0.1)
    gripper = F.binary_cross_entropy_with_logits(raw[:, -1], (wanted[:, -1] > 0).float())
    return motion + SIGNS * gripper


def load(file: str | Path) -> Cloned:
    """Return the network that `train` wrote."""
    network = Cloned()
    network.load_state_dict(load_file(file))
    return network.eval()


def train(data: str, *, steps: int, batch: int, seed: int, share: float = 1.0) -> Cloned:
    """Train a network on a share of the demonstrations and return it."""
    with ZarrStore.open(data) as store:
        rows, ends = int(store.ends[-1]), np.asarray(store.ends)
        images = torch.stack(
            [torch.from_numpy(store.rows(f"observation/{key}", 0, rows)) for key in CAMERAS], dim=1
        )
        actions = torch.from_numpy(store.rows("action", 0, rows))
        tasks = torch.from_numpy(store.rows("observation/task", 0, rows))[:, 0]
    number = np.arange(len(ends))
    test, left_out = is_test(number, HELD_OUT), is_test(number, 1 - share * (1 - HELD_OUT))
    of_row = np.repeat(number, np.diff(ends, prepend=0))
    acted = np.ones(rows, bool)
    acted[ends - 1] = False  # no action follows the last observation of an episode
    shown = np.flatnonzero(acted & ~(test | left_out)[of_row])
    held = np.flatnonzero(acted & test[of_row])

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = Cloned().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    warmup = min(100, steps // 10 + 1)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    wall, cpu = perf_counter(), process_time()
    for step in range(steps):
        if step * batch % len(shown) < batch:
            order = rng.permutation(shown)
        at = step * batch % (len(shown) - batch)
        chosen = torch.from_numpy(order[at : at + batch])
        loss = error(network(images[chosen], tasks[chosen]), actions[chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        if step % 200 == 199 or step == steps - 1:
            r2, signs = evaluate(network, images, tasks, actions=actions, rows=held)
            print(
                f"step {step + 1}/{steps}: loss {loss.item():.4f}, held out r2 {r2:.3f}, signs "
                f"{signs:.3f}; {perf_counter() - wall:.0f} s, {process_time() - cpu:.0f} s of CPU",
                flush=True,
            )
    return network.eval()


@torch.no_grad()
def evaluate(
    network: Cloned, images: Tensor, tasks: Tensor, *, actions: Tensor, rows: np.ndarray
) -> tuple[float, float]:
    """Return the R2 of the motion and the accuracy of gripper signs, on at most 1,024 rows."""
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(rows)[:1024])
    wanted = actions[chosen]
    raw = torch.cat([network(images[c], tasks[c]) for c in chosen.split(256)])
    wrong = (raw - wanted)[:, :-1].square().mean()
    r2 = 1 - wrong / wanted[:, :-1].var(0).mean()
    return float(r2), float(((raw > 0) == (wanted > 0))[:, -1].float().mean())


def main() -> None:
    """Train a network and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the demonstrations")
    given = vars(parser.parse_args())
    out = Path(given.pop("out"))
    network = train(given.pop("data"), **given)
    with replacing(out) as partial:
        save_file(
            {key: value.contiguous() for key, value in network.state_dict().items()},
            partial,
            metadata={"settings": json.dumps(given)},
        )


if __name__ == "__main__":
    main()
