"""`latentplan train`: a model of an episode store, in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from latentplan.errors import Interrupted


def run(
    model: str,
    *,
    data: str | Path,
    run: str | Path,
    resume: bool = False,
    seed: int = 0,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    cache: str | Path | None = None,
) -> None:
    """Train `model` and print its held-out figures; see `latentplan.train`."""
    from latentplan.api.train import Run, train
    from latentplan.commands.progress import Bars

    try:
        with Bars() as bars:
            found = train(
                model,
                data=data,
                run=run,
                resume=resume,
                seed=seed,
                device=device,
                overrides=overrides,
                cache=cache,
                on_progress=bars,
            )
    except Interrupted as e:
        step = cast(Run, e.result).step
        at = f" at step {step}" if step else ""
        print(f"{run}: stopped{at}; --resume continues")
        raise
    if found.steps == 0:
        print(f"{run}: has done its {found.step} steps; raise training.steps to continue")
    groups: dict[str, list[str]] = {}
    for key, value in found.figures.items():
        stage, _, name = key.rpartition(".")
        groups.setdefault(stage, []).append(f"{name} {value:.4g}")
    for stage, figures in groups.items():
        if stage:
            print(f"{stage}: {', '.join(figures)}")
    print(f"{found.checkpoint}: step {found.step}; held out: {', '.join(groups.get('', []))}")
