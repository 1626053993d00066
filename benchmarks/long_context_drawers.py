"""A toy task that needs memory: a block is seen once, in one of four drawers, 500 steps ago.

The images have 8 x 8 pixels. At one of the first steps the block is shown in a drawer; then all
drawers are closed and an arm wanders at random along a strip; at last a drawer is opened, and the
image shows the block, or an empty drawer: the same image for each of the four. So the goal, the
image of the block, does not say where it is; only the step at the beginning does. Half of the data
are wanderings of 3 to 600 steps, then eight openings at random; the other half are 30 openings soon
after the cue, without which the rule takes far longer to learn. A trial has one opening. A plan is
one of the four openings: that whose predicted image is nearest to the goal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from latentplan.api.train import train
from latentplan.data.store import ZarrStore
from latentplan.models.lwm.lwm import LWM
from latentplan.training import checkpoint
from latentplan.types import ActionSpec, Array, ArraySpec, Context, Episode, Progress, Spec

DRAWERS, PLACES = 4, 5
SPEC = Spec(
    {"rgb": ArraySpec((8, 8, 3), "uint8")},
    ActionSpec((-1.0,) + (0.0,) * DRAWERS, (1.0,) * (1 + DRAWERS), "move, then open each drawer"),
    env="drawers",
)
GREY, BROWN, RED, WHITE, BLUE = (np.array(c, np.uint8) for c in
                                 ((90, 90, 90), (130, 90, 40), (230, 30, 30), (250, 250, 250),
                                  (30, 60, 220)))  # fmt: skip
SHORT, LONG = (3, 30), (500, 600)  # steps between the cue and the opening
DELAYS = {"short": SHORT, "middle": (100, 150), "long": LONG}
EPISODES, OPENINGS, PLAY, TRIALS = 480, 8, 30, 200
TOKENIZER = {"levels": "[8,5,3]", "patch": 8, "channels": "[48]"}
NETWORK = ["model.transformer.width=64", "model.transformer.layers=2",
           "model.transformer.heads=4", "model.transformer.action_weight=0",
           "model.horizon=1"]  # fmt: skip
SCHEDULE = {"steps": 500, "learning_rate": 0.003, "warmup": 50, "clip": 1.0, "eval_every": 50,
            "save_every": 100}  # fmt: skip
MODELS = {  # batches are rows of the longest context
    "long": ["model.contexts=[40,160,640]", "model.thetas=[1e4,1e5,1e6]",
             "model.efforts=[1.0,0.3,0.8]", "training.transformer.batch=2"],
    "window": ["model.contexts=[40,64]", "model.thetas=[1e4,1e4]", "model.efforts=[1.0,0.5]",
               "training.transformer.batch=20"],
}  # fmt: skip


def measure(out: Path) -> dict[str, Any]:
    """Return the success after short and long delays, with a long context and with a window."""
    data, tokenizer = out / "drawers.zarr", out / "tokenizer"
    if not tokenizer.exists():
        collect_frames(out / "frames.zarr")
    if not data.exists():
        collect(data, EPISODES)
    values = {**{f"tokenizer.{key}": each for key, each in TOKENIZER.items()},
              "training.steps": 800, "training.batch": 32, "training.learning_rate": 0.003}
    train("vqvae", kind="tokenizer", data=out / "frames.zarr", run=tokenizer, resume=True,
          overrides=[f"{key}={each}" for key, each in values.items()], on_progress=_print)
    check_tokens(checkpoint.load(checkpoint.find(tokenizer), kind="tokenizer").model)
    found: dict[str, Any] = {"chance": 1 / DRAWERS, "steps_between": DELAYS}
    for name, own in MODELS.items():
        overrides = [f"model.tokenizer={{run: {tokenizer}}}", *NETWORK, *own]
        overrides += [f"training.transformer.{key}={value}" for key, value in SCHEDULE.items()]
        run = train("lwm", data=data, run=out / name, overrides=overrides, resume=True,
                    cache=out / "stages", on_progress=_print)  # fmt: skip
        model = checkpoint.load(checkpoint.find(run.folder)).model
        draw = np.random.default_rng(12345)
        found[name] = {
            "context": model.context,
            "figures": dict(run.figures),
            **{delay: success(model, draw, steps) for delay, steps in DELAYS.items()},
        }  # fmt: skip
        print(name, found[name])
    return found


def _print(progress: Progress) -> None:
    if progress.figures and progress.done % 100 == 0:
        print(progress.task, progress.done, progress.figures, flush=True)


def collect(path: Path, count: int) -> None:
    """Write wanderings of 3 to 600 steps (log-uniform) with openings at their end, and play."""
    draw = np.random.default_rng(0)
    with ZarrStore.create(path, SPEC) as store:
        for number in range(count):
            play = number % 2
            steps = int(np.exp(draw.uniform(np.log(SHORT[0]), np.log(LONG[1]))))
            images, actions, drawer = wander(draw, (1, 3) if play else (steps, steps + 1))
            for opened in draw.integers(DRAWERS, size=PLAY if play else OPENINGS).tolist():
                images.append(opening(shown=opened == drawer))
                actions.append(open_action(opened))
            sent = np.stack(actions)
            store.append(Episode({"rgb": np.stack(images)}, sent, np.zeros(len(sent), np.float32)))


def frames() -> list[Array]:
    """Return all images of the task."""
    scenes = [scene(place, None) for place in range(PLACES)]
    cues = [scene(0, drawer) for drawer in range(DRAWERS)]
    return [*scenes, *cues, opening(shown=True), opening(shown=False)]


def collect_frames(path: Path) -> None:
    """Write all images equally often, for the tokenizer: it merges those that are too rare."""
    images = np.stack(frames())
    actions = np.zeros((len(images) - 1, 1 + DRAWERS), np.float32)
    with ZarrStore.create(path, SPEC) as store:
        for _ in range(20):
            store.append(Episode({"rgb": images}, actions, np.zeros(len(actions), np.float32)))


def check_tokens(tokenizer: Any) -> None:
    """Exit unless every image has a token of its own."""
    images = torch.from_numpy(np.stack(frames()))[None]
    ids = tokenizer.encode({"rgb": images}).ids.flatten()
    if len(ids.unique()) < len(ids):
        raise SystemExit(f"{len(ids)} images have {len(ids.unique())} tokens")


def wander(
    draw: np.random.Generator, between: tuple[int, int]
) -> tuple[list[Array], list[Array], int]:
    """Return images and actions up to the opening, and the drawer with the block."""
    drawer, place = int(draw.integers(DRAWERS)), int(draw.integers(PLACES))
    cue = int(draw.integers(4))
    images, actions = [scene(place, drawer if cue == 0 else None)], []
    for step in range(1, cue + int(draw.integers(*between)) + 1):
        move = draw.choice([-1.0, 1.0])
        place = int(np.clip(place + move, 0, PLACES - 1))
        actions.append(np.array([move, *[0.0] * DRAWERS], np.float32))
        images.append(scene(place, drawer if cue == step else None))
    return images, actions, drawer


def scene(place: int, drawer: int | None) -> Array:
    """Return the image (8, 8, 3) of closed drawers and the arm, or of the block in a drawer."""
    image = np.full((8, 8, 3), GREY)
    image[:4] = BROWN
    if drawer is None:
        image[4:, place : place + 4] = BLUE
    else:
        image[:, 2 * drawer : 2 * drawer + 2] = RED
    return image


def opening(*, shown: bool) -> Array:
    """Return the image of an opened drawer, with the block or without: the same for each."""
    image = np.full((8, 8, 3), WHITE)
    if shown:
        image[2:6, 2:6] = RED
    return image


def open_action(drawer: int) -> Array:
    """Return the action that opens a drawer."""
    return np.eye(1 + DRAWERS, dtype=np.float32)[1 + drawer]


@torch.no_grad()
def success(model: LWM, draw: np.random.Generator, between: tuple[int, int]) -> dict[str, Any]:
    """Return the share of trials in which the best of the four openings shows the block."""
    goal = model.encode({"rgb": torch.from_numpy(opening(shown=True))[None, None]})[0, 0]
    candidates = torch.from_numpy(np.stack([open_action(d) for d in range(DRAWERS)]))
    hits = 0
    for _ in range(TRIALS):
        images, actions, drawer = wander(draw, between)
        seen = torch.from_numpy(np.stack(images[-model.context :]))[None]
        past = torch.from_numpy(np.stack(actions))[None, len(actions) + 1 - seen.shape[1] :]
        prepared = model.prepare(Context(model.encode({"rgb": seen}), past))
        after = model.rollout(prepared, candidates[None, :, None])[0, :, 0]
        hits += int((after - goal).square().sum(-1).argmin()) == drawer
    return share(hits, TRIALS)


def share(hits: int, count: int) -> dict[str, Any]:
    """Return a share with its exact 95 % interval."""
    interval = binomtest(hits, count).proportion_ci()
    return {"share": hits / count, "of": count, "low": interval.low, "high": interval.high}
