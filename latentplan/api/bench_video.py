"""`bench_video`: how well models imagine video, open loop under the actions that were sent.

Each model is given the first frames of held-out clips and all their actions, and imagines the
frames. They are compared with what happened, with the last given frame repeated, and with what the
model's tokenizer makes of the true frames, which no imagined frame can surpass.

    OUT/results.json     figures with intervals, settings, command, machine
    OUT/results.md       the same as tables
    OUT/CAMERA.png       truth, tokenizer and models, time to the right
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentplan.api import bench_video_page as pages
from latentplan.data.store import ZarrStore
from latentplan.data.windows import HELD_OUT, is_test
from latentplan.errors import CheckpointError, ConfigError, StoreError, check_range
from latentplan.evaluation import objects, open_loop
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.protocols import DecodableDynamics, TokenModel, VideoModel
from latentplan.training import checkpoint, run_folder
from latentplan.types import Array, Context, OnProgress, Progress, Spec, Tensors
from latentplan.urls import local

BATCH = 16  # clips imagined at a time
HORIZONS = (1, 2, 4, 8, 16, 32, 64)  # frames that figures are pooled over, as far as they go
REPEAT = "last frame repeated"


@dataclass(frozen=True)
class Compared:
    """The results of `bench_video`."""

    models: Mapping[str, Any]  # figures by run, in the order given
    refused: Mapping[str, str]  # runs that cannot imagine under actions, and why
    results: Path  # results.json
    page: Path  # results.md


def bench_video(
    runs: Sequence[str | Path],
    *,
    data: str | Path,
    out: str | Path,
    steps: int = 16,
    context: int = 2,
    clips: int = 64,
    split: str = "test",
    camera: str = "",
    temperature: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
    on_progress: OnProgress = lambda progress: None,
) -> Compared:
    """Compare the frames that trained models imagine with those of held-out clips of `data`.

    One clip of `context` + `steps` frames is taken from each episode that is long enough, at a
    place drawn from `seed`, up to `clips`; of the held-out tenth of the episodes (split `test`), or
    of all in a store that no model was trained on (`all`). Figures are of one camera, by default
    the first of the store.

    Raises ConfigError for a number out of range or a camera that is not there, StoreError if no
    episode is long enough, CheckpointError for a run without a model.
    """
    check_range("bench_video.steps", steps, 1, HORIZONS[-1])
    check_range("bench_video.context", context, 1)
    check_range("bench_video.clips", clips, 2)
    check_range("bench_video.temperature", temperature, 0.0)
    if split not in ("test", "all"):
        raise ConfigError(f"bench_video.split: found {split!r}, need test or all")
    models = _models(runs, device)
    folder = local(out, where="bench_video.out")
    with ZarrStore.open(data) as store:
        camera = camera or _first_image(store)
        if camera not in store.spec.observation:
            raise ConfigError(f"bench_video.camera: {store.path} has no images {camera!r}")
        found = _clips(store, context + steps, count=clips, split=split, seed=seed)
        spec, identity, path = store.spec, run_folder.identity(store), str(store.path)
    judge = _Judge(found.frames[camera][:, context - 1 :], spec, seed)
    drawing: dict[str, Any] = {"context": context, "temperature": temperature, "seed": seed}
    rows: dict[str, Any] = {REPEAT: judge.figures(judge.still)}
    shown, refused = {"truth": judge.truth}, {}
    for done, (name, model) in enumerate(models.items()):
        on_progress(Progress("bench video", "models", done, len(models)))
        reason = _unfit(model, found, camera)
        if reason:
            refused[name] = reason
            continue
        if isinstance(model, TokenModel):
            shown[f"{name}: tokenizer"] = _reconstructed(model, found, camera, steps)
        shown[name] = _imagined(model, found, camera, **drawing)
    rows |= {name: judge.figures(each) for name, each in shown.items() if name != "truth"}
    on_progress(Progress("bench video", "models", len(models), len(models)))
    settings = {**drawing, "steps": steps, "clips": len(judge.truth), "split": split}
    settings |= {"camera": camera, "device": device}
    made = {"settings": settings, "data": {"path": path, **identity}, **provenance()}
    return _write(folder, rows, refused, made, shown, camera=camera)


@dataclass(frozen=True)
class _Clips:
    """Clips of one length."""

    frames: Mapping[str, Array]  # (n, t, h, w, 3) uint8 by camera
    actions: Array  # (n, t - 1, A)


class _Judge:
    """What happened in clips, and how far from it imagined frames are."""

    def __init__(self, frames: Array, spec: Spec, seed: int) -> None:
        """Take frames (n, 1 + steps, h, w, 3) of a camera: the last given, and those that came."""
        last, self.truth = frames[:, 0], frames[:, 1:]
        steps = self.truth.shape[1]
        self.still = np.repeat(last[:, None], steps, axis=1)  # the control
        self.spec, self.seed, self.last = spec, seed, last
        self.marks = objects.masks(self.truth, spec)
        self.repeated = self._errors(self.still)
        self.horizons = sorted({*(k for k in HORIZONS if k < steps), steps})

    def figures(self, imagined: Array) -> dict[str, Any]:
        """Return the figures of imagined frames (n, steps, h, w, 3) at each horizon."""
        found = self._errors(imagined)
        return open_loop.figures(found, self.repeated, steps=self.horizons, seed=self.seed)

    def _errors(self, imagined: Array) -> open_loop.Errors:
        seen = objects.masks(imagined, self.spec)
        return open_loop.errors(self.truth, imagined, last=self.last, masks=self.marks, found=seen)


def _models(runs: Sequence[str | Path], device: str) -> dict[str, Any]:
    """Return the models of runs by short names, or by paths where two names are the same."""
    if not runs:
        raise ConfigError("bench_video.runs: found none, need at least one trained run")
    names = [_name(run) for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    files = [checkpoint.find(run) for run in runs]
    return {
        name: checkpoint.load(file, device=device).model
        for name, file in zip(names, files, strict=True)
    }


def _name(run: str | Path) -> str:
    """Return a short name of a run: the last part of its path."""
    path = Path(run)
    return path.parent.name if path.suffix == ".safetensors" else path.name


def _first_image(store: ZarrStore) -> str:
    for key, array in store.spec.observation.items():
        if array.dtype == "uint8" and len(array.shape) == 3 and array.shape[-1] == 3:
            return key
    raise StoreError(f"{store.path}: has no images; collect or import some with a camera")


def _clips(store: ZarrStore, length: int, *, count: int, split: str, seed: int) -> _Clips:
    """Return a clip of each episode that has `length` observations, up to `count`."""
    lengths = np.diff(store.ends, prepend=0)
    fits = lengths >= length
    if split == "test":
        fits &= is_test(np.arange(len(store)), HELD_OUT)
    episodes = np.flatnonzero(fits)
    if len(episodes) < 2:
        raise StoreError(
            f"{store.path}: {len(episodes)} {'held-out ' if split == 'test' else ''}episodes have "
            f"{length} observations, need 2; set bench_video.steps lower, or collect longer ones"
        )
    rng = np.random.default_rng(seed)
    cameras = [k for k, a in store.spec.observation.items() if a.dtype == "uint8"]
    frames: dict[str, list[Array]] = {key: [] for key in cameras}
    actions = []
    for number in sorted(rng.permutation(episodes)[:count]):
        episode = store.episode(int(number))
        start = int(rng.integers(0, lengths[number] - length + 1))
        for key in cameras:
            frames[key].append(episode.observations[key][start : start + length])
        actions.append(episode.actions[start : start + length - 1])
    return _Clips({key: np.stack(each) for key, each in frames.items()}, np.stack(actions))


def _unfit(model: Any, clips: _Clips, camera: str) -> str:
    """Return why a model cannot imagine the camera's frames under the actions; "" if it can."""
    wanted = {k: a.shape for k, a in model.spec.observation.items()}
    for key, shape in wanted.items():
        here = clips.frames[key].shape[2:] if key in clips.frames else None
        if here != shape:
            return f"observes {key} {shape}, the data have {here or 'none'}"
    if camera not in wanted:
        return f"does not observe {camera}"
    if model.spec.action.size != clips.actions.shape[-1]:
        return f"takes actions of {model.spec.action.size} numbers, not {clips.actions.shape[-1]}"
    if isinstance(model, DecodableDynamics):
        return ""
    if not isinstance(model, VideoModel):
        return "has no decoder to images"
    return "" if _depends_on_actions(model, clips) else "was trained without actions"


def _depends_on_actions(model: VideoModel, clips: _Clips) -> bool:
    """Return whether a frame's probability depends on the actions before it."""
    length = int(model.stride) * 2
    frames = _tensors(clips.frames, model, slice(0, 1), slice(0, length))
    zero = torch.zeros(1, length - 1, model.spec.action.size, device=_device(model))
    with torch.no_grad():
        left, right = (model.log_prob(frames, actions=each) for each in (zero, zero + 0.5))
    return not torch.equal(left, right)


def _imagined(
    model: Any, clips: _Clips, camera: str, *, context: int, temperature: float, seed: int
) -> Array:
    """Return the frames (n, steps, h, w, 3) that a model imagines after the first `context`."""
    found = []
    steps = clips.actions.shape[1] + 1 - context
    generator = torch.Generator(_device(model)).manual_seed(seed)
    for start in range(0, len(clips.actions), BATCH):
        rows = slice(start, start + BATCH)
        given = _tensors(clips.frames, model, rows, slice(0, context))
        sent = torch.from_numpy(clips.actions[rows]).to(_device(model))
        with torch.no_grad():
            if isinstance(model, VideoModel) and _depends_on_actions(model, clips):
                drawn: dict[str, Any] = {"temperature": temperature, "generator": generator}
                shown = model.sample(given, steps, actions=sent, **drawn)
            else:
                shown = _rolled_out(model, given, sent)
        found.append(shown[camera].cpu().numpy())
    return np.concatenate(found)


def _rolled_out(model: Any, given: Tensors, actions: torch.Tensor) -> Tensors:
    """Return the decoded latents of a rollout, after as many frames as the model takes."""
    latents = model.encode(given)
    past = latents.shape[1] - 1
    missing = model.context - latents.shape[1]
    if missing > 0:  # copies of the first, as a planner has at the start
        latents = torch.cat([latents[:, :1].expand(-1, missing, -1), latents], dim=1)
    sent = actions[:, :past]
    if missing > 0:
        sent = torch.cat([torch.zeros_like(actions[:, :1]).expand(-1, missing, -1), sent], dim=1)
    t = model.context
    context = Context(latents[:, -t:], sent[:, sent.shape[1] - t + 1 :])
    ahead = model.rollout(model.prepare(context), actions[:, None, past:])
    shown: Tensors = model.decode(ahead[:, 0])
    return shown


def _reconstructed(model: Any, clips: _Clips, camera: str, steps: int) -> Array:
    """Return what the tokenizer makes of the last `steps` true frames (n, steps, h, w, 3)."""
    tokenizer, found = model.tokenizer, []
    length = -(-steps // tokenizer.stride) * tokenizer.stride
    total = clips.frames[camera].shape[1]
    if length > total:
        length = total // tokenizer.stride * tokenizer.stride
    for start in range(0, len(clips.actions), BATCH):
        rows = slice(start, start + BATCH)
        frames = _tensors(clips.frames, model, rows, slice(total - length, total))
        with torch.no_grad():
            shown = tokenizer.decode(tokenizer.encode(frames))[camera]
        found.append(shown[:, -steps:].cpu().numpy())
    return np.concatenate(found)


def _tensors(frames: Mapping[str, Array], model: Any, rows: slice, times: slice) -> Tensors:
    device = _device(model)
    return {
        key: torch.from_numpy(frames[key][rows, times]).to(device)
        for key in model.spec.observation
    }


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device


def _write(
    folder: Path,
    rows: Mapping[str, Any],
    refused: Mapping[str, str],
    made: Mapping[str, Any],
    shown: Mapping[str, Array],
    *,
    camera: str,
) -> Compared:
    """Write the figures, the page and the image."""
    results, page = folder / "results.json", folder / "results.md"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(results) as partial:
            values = {**made, "models": rows, "refused": refused}
            partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        with replacing(page) as partial:
            partial.write_text(pages.render(rows, refused, made), encoding="utf-8")
        pages.draw(folder / f"{camera}.png", shown)
    except OSError as e:
        raise CheckpointError(f"{folder}: cannot be written ({e.strerror or e})") from e
    return Compared(rows, refused, results, page)
