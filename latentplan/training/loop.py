"""The training loop: AdamW with warm-up and cosine decay, held-out figures, exact resume."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from latentplan.errors import CheckpointError, TrainingError
from latentplan.protocols import Windows
from latentplan.training import checkpoint, state
from latentplan.training.curves import Curves
from latentplan.training.heldout import HeldOut, evaluate, for_model
from latentplan.training.state import State
from latentplan.types import Batch, Loss, Training


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
    now = State(model, optimizer=_optimizer(model, config), ema=_averaged(model, config))
    if resume and (run / state.FILE).exists():
        now.restore(run)
    else:  # so that a run whose state is missing was not merely stopped early
        with writing(run):
            now.save(run)
    kept = model if now.ema is None else now.ema.module
    loss_of = torch.compile(model.loss) if config.compile else model.loss
    save = partial(checkpoint.save, model=kept, kind=kind, name=name)
    model.train()
    with writing(run), Curves(run, start=now.step) as curves, Interrupt() as interrupt:
        for batch in islice(windows.batches(now.step), max(0, config.steps - now.step)):
            torch.manual_seed(_seed(seed, now.step))
            now.add(_step(now, for_model(batch, model), loss_of=loss_of, config=config))
            now.step += 1

            due = Due.at(now.step, config, stop=interrupt.asked)
            if due.any and not now.finite():  # the only moments that wait for the GPU
                raise _diverged(run, now.step, "the loss or its gradient")
            figures = _log(now, curves, config) if due.log else {}
            if due.evaluate and _evaluate(now, kept, held_out, curves=curves, run=run):
                save(run / "best.safetensors", step=now.step, metrics=now.figures)
            if due.save:
                curves.flush()
                save(run / "last.safetensors", step=now.step, metrics=now.figures)
                now.save(run)  # last: if this exists, so do the files that go with it
            advance(now.step, figures)
            if interrupt.asked:
                raise KeyboardInterrupt
    return now.figures


class Due(NamedTuple):
    """What follows a step."""

    log: bool
    evaluate: bool
    save: bool

    @classmethod
    def at(cls, step: int, config: Training, *, stop: bool) -> Due:
        """Return what follows step number `step`; a training that stops is saved."""
        every = (config.log_every, config.eval_every, config.save_every)
        log, evaluate, save = (step % each == 0 or step == config.steps for each in every)
        return cls(log, evaluate, save or stop)

    @property
    def any(self) -> bool:
        """Whether anything follows."""
        return any(self)


def _optimizer(model: Any, config: Training) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )


def _averaged(model: Any, config: Training) -> AveragedModel | None:
    if not config.ema:
        return None
    average = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average)


def _step(
    now: State, batch: Batch, *, loss_of: Callable[[Batch], Loss], config: Training
) -> dict[str, Tensor]:
    """Update the weights by one batch; return the parts of the loss and the gradient's norm."""
    for group in now.optimizer.param_groups:
        group["lr"] = learning_rate(now.step, config)
    device = next(now.model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        loss = loss_of(batch)
    now.optimizer.zero_grad()
    loss.total.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(now.model.parameters(), config.clip)
    now.optimizer.step()
    if now.ema is not None:
        now.ema.update_parameters(now.model)
    return {**loss.parts, "loss": loss.total, "grad_norm": norm}


def _log(now: State, curves: Curves, config: Training) -> dict[str, float]:
    """Add a point to the training curve; return its loss for the progress."""
    means = now.mean()
    curves.scalars(means | {"learning_rate": learning_rate(now.step - 1, config)}, now.step)
    return {"loss": means["loss"]}


def _evaluate(now: State, model: Any, held_out: HeldOut, *, curves: Curves, run: Path) -> bool:
    """Update the held-out figures; return whether their loss is the lowest so far."""
    now.figures = evaluate(model, held_out)
    if not math.isfinite(now.figures["loss"]):
        raise _diverged(run, now.step, "the held-out loss")
    curves.scalars({f"held_out/{k}": v for k, v in now.figures.items()}, now.step)
    best = now.figures["loss"] < now.best
    now.best = min(now.best, now.figures["loss"])
    return best


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
