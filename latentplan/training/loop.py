"""The training loop: AdamW with warm-up and cosine decay, held-out figures, exact resume."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from latentplan.errors import CheckpointError, ConfigError, TrainingError, check_range
from latentplan.protocols import Windows
from latentplan.training import checkpoint, state
from latentplan.training.curves import Curves
from latentplan.training.heldout import HeldOut, evaluate, for_model
from latentplan.training.state import State


@dataclass(frozen=True)
class Training:
    """Settings of a run."""

    steps: int = 10_000  # of the optimizer
    batch: int = 128  # windows a step
    window: int = 2  # observations a window: the model's context and those it predicts
    learning_rate: float = 1e-3  # highest, reached after the warm-up
    final_rate: float = 0.01  # share of learning_rate left at the last step
    warmup: int = 200  # steps over which the rate rises from 0
    weight_decay: float = 1e-6  # AdamW's: a share of each weight per step and rate
    clip: float = 20.0  # largest norm of the gradient
    ema: float = 0.0  # decay a step of averaged weights, which are then judged and kept; 0 off
    precision: str = "float32"  # or "bfloat16": forward pass under autocast, weights stay float32
    compile: bool = False  # torch.compile of the loss
    held_out: float = 0.1  # share of the episodes that are never trained on
    log_every: int = 50  # steps between points of the training curve
    eval_every: int = 500  # steps between held-out figures
    save_every: int = 500  # steps between saves, each of which a resume can go on from

    def __post_init__(self) -> None:
        """Raise ConfigError where a value is out of range."""
        for name in ("steps", "log_every", "eval_every", "save_every"):
            check_range(f"Training.{name}", getattr(self, name), 1)
        check_range("Training.batch", self.batch, 2)
        check_range("Training.window", self.window, 2)
        check_range("Training.learning_rate", self.learning_rate, 0.0, 1.0)
        check_range("Training.final_rate", self.final_rate, 0.0, 1.0)
        check_range("Training.warmup", self.warmup, 0)
        check_range("Training.weight_decay", self.weight_decay, 0.0)
        check_range("Training.clip", self.clip, 0.0)
        check_range("Training.ema", self.ema, 0.0, 0.999999)
        check_range("Training.held_out", self.held_out, 0.001, 0.9)
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(
                f"Training.precision: found {self.precision!r}, need float32 or bfloat16"
            )


def train(
    model: Any,
    windows: Windows,
    *,
    held_out: HeldOut,
    run: Path,
    config: Training,
    name: str,
    seed: int = 0,
    resume: bool = False,
    advance: Callable[..., None] = lambda n, **fields: None,
) -> dict[str, float]:
    """Train `model` (protocols.Dynamics) where it is; return the held-out figures at the end.

    Writes into the folder `run`: `best.safetensors` (lowest held-out loss) and `last.safetensors`
    under the registry name `name`, `state.safetensors`, `log.jsonl`, `tensorboard/`. With `resume`
    it goes on from the state there, if any, and ends bit-equal to a run that was never stopped
    (on the CPU: the same weights and log.jsonl for the same number of threads); without, it starts
    anew and replaces them. `advance(steps, **fields)` is called as it goes on.

    Raises TrainingError when the loss or its gradient is not finite, CheckpointError when the disk
    does not take a file: what was saved before stays good. Ctrl-C saves, then raises
    KeyboardInterrupt.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    ema = None
    if config.ema:
        average = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
        ema = AveragedModel(model, multi_avg_fn=average)
    kept = ema.module if ema is not None else model
    now = State(model, optimizer=optimizer, ema=ema)
    if resume and (run / state.FILE).exists():
        now.restore(run)
    loss_of = torch.compile(model.loss) if config.compile else model.loss
    amp = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    model.train()

    def save(path: Path) -> None:
        checkpoint.save(path, kept, name=name, step=now.step, metrics=now.figures)

    def due(every: int) -> bool:
        return now.step % every == 0 or now.step == config.steps

    with writing(run), Curves(run, start=now.step) as curves, Interrupt() as interrupt:
        for batch in islice(windows.batches(now.step), max(0, config.steps - now.step)):
            torch.manual_seed(_seed(seed, now.step))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(now.step, config)
            with amp:
                loss = loss_of(for_model(batch, model))
            optimizer.zero_grad()
            loss.total.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            if ema is not None:
                ema.update_parameters(model)
            now.step += 1
            now.add({**loss.parts, "loss": loss.total, "grad_norm": norm})

            log, judge = due(config.log_every), due(config.eval_every)
            keep = due(config.save_every) or interrupt.asked
            fields: dict[str, float] = {}
            if log or judge or keep:  # the only moments that wait for the GPU
                if not now.finite():
                    raise _diverged(run, now.step, "the loss or its gradient")
            if log:
                fields = {**now.mean(), "learning_rate": learning_rate(now.step - 1, config)}
                curves.scalars(fields, now.step)
            if judge:
                now.figures = evaluate(kept, held_out)
                if not math.isfinite(now.figures["loss"]):
                    raise _diverged(run, now.step, "the held-out loss")
                curves.scalars({f"held_out/{k}": v for k, v in now.figures.items()}, now.step)
                if now.figures["loss"] < now.best:
                    now.best = now.figures["loss"]
                    save(run / "best.safetensors")
            if keep:
                curves.flush()
                save(run / "last.safetensors")
                now.save(run)  # last: where this exists, so do the files that go with it
            advance(1, **{k: fields[k] for k in ("loss",) if k in fields})
            if interrupt.asked:
                raise KeyboardInterrupt
    return now.figures


def learning_rate(step: int, config: Training) -> float:
    """Return the rate of a step: a linear warm-up, then half a cosine down to the final rate."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    fall = 0.5 * (1 + math.cos(math.pi * done))  # 1 .. 0
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * fall)


class Interrupt:
    """Makes the first Ctrl-C a wish that the loop grants between two steps; the second acts."""

    def __init__(self) -> None:
        """Wait for nothing yet."""
        self.asked = False

    def __enter__(self) -> Interrupt:
        """Listen; outside the main thread signals go elsewhere, and this does nothing."""
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        """Let Ctrl-C do what it did before."""
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Tell a full disk or a missing right in the folder `run` as the user's matter."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as e:
        raise CheckpointError(
            f"{run}: cannot be written ({e.strerror or e}); what was saved before is intact: "
            "free some disk space, then resume the run"
        ) from e


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=(step,)).generate_state(1, np.uint64)[0])


def _diverged(run: Path, step: int, what: str) -> TrainingError:
    return TrainingError(
        f"{run}: {what} is not finite at or shortly before step {step}; the checkpoints saved "
        "before are kept: train anew with a smaller training.learning_rate or training.clip"
    )
