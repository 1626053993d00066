"""The training loop: AdamW with warm-up and cosine decay, held-out figures, exact resume."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from latentplan.errors import CheckpointError, TrainingError
from latentplan.protocols import Windows
from latentplan.training import checkpoint, state
from latentplan.training.curves import Curves
from latentplan.training.heldout import HeldOut, evaluate, for_model
from latentplan.training.state import State
from latentplan.types import Training


def train(
    model: Any,
    windows: Windows,
    *,
    held_out: HeldOut,
    run: Path,
    config: Training,
    name: str,
    kind: str = "model",
    seed: int = 0,
    resume: bool = False,
    advance: Callable[[int, Mapping[str, float]], None] = lambda done, figures: None,
) -> dict[str, float]:
    """Train `model` (a protocols.Learner) on its device; return the held-out figures at the end.

    Writes into the folder `run`: `best.safetensors` (lowest held-out loss) and `last.safetensors`
    under the registry `kind` and `name`, `state.safetensors`, `log.jsonl`, `tensorboard/`. With
    `resume` it continues from the state there, if any, and ends bit-equal to a run that was never
    stopped (on the CPU: the same weights and log.jsonl for the same number of threads); without, it
    starts at step 0 and replaces them. `advance(steps done, figures)` is called after every step.

    Raises TrainingError if the loss or its gradient is not finite, CheckpointError if a file cannot
    be written: what was saved before stays good. Ctrl-C saves, then raises KeyboardInterrupt.
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
    else:  # so that a run whose state is missing was not merely stopped early
        with writing(run):
            now.save(run)
    loss_of = torch.compile(model.loss) if config.compile else model.loss
    amp = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    model.train()

    def save(path: Path) -> None:
        checkpoint.save(path, kept, kind=kind, name=name, step=now.step, metrics=now.figures)

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
            advance(now.step, {k: fields[k] for k in ("loss",) if k in fields})
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
    """Turns the first Ctrl-C into a request that the loop serves between two steps."""

    def __init__(self) -> None:
        """Start without a request."""
        self.asked = False

    def __enter__(self) -> Interrupt:
        """Handle SIGINT; outside the main thread there are no signals, and this does nothing."""
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the former handler."""
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)


@contextmanager
def writing(run: Path) -> Iterator[None]:
    """Raise CheckpointError for a full disk or a missing permission in the folder `run`."""
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
        "before are kept: train again with a smaller training.learning_rate or training.clip"
    )
