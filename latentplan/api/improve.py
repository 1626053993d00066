"""`latentplan.improve`: rounds of collecting with a run, and training it again on all data.

Each round adds episodes of the last round's planner (`api/on_policy.py`) to the data, and trains
the same model, with the same settings, on all of them:

    OUT/1/planned.zarr    episodes of RUN's planner
    OUT/1/data.zarr       RUN's data, followed by these
    OUT/1/run             trained on data.zarr; round 2 collects with it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentplan import registry
from latentplan.api.choice import Overrides, as_overrides
from latentplan.api.collect import collect
from latentplan.api.join import join
from latentplan.api.train import KINDS, Run, train
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, check_range
from latentplan.training import run_folder
from latentplan.types import OnProgress
from latentplan.urls import local

OF_COLLECTION = ("env.", "policy.", "collect.")  # overrides; the others are of training


@dataclass(frozen=True)
class Improved:
    """The results of `improve`."""

    rounds: tuple[Run, ...]  # the training of each round; the last one is the best to plan with

    @property
    def run(self) -> Path:
        """The run folder of the last round."""
        return self.rounds[-1].folder


def improve(
    run: str | Path,
    *,
    out: str | Path,
    rounds: int = 1,
    episodes: int = 500,
    workers: int | None = None,
    device: str = "cpu",
    overrides: Overrides = (),
    on_progress: OnProgress = lambda progress: None,
) -> Improved:
    """Add `episodes` of the run's own planner to its data and train again, `rounds` times.

    `run` is the folder of a training on a store that `collect` made; `out` is the folder of the
    rounds. Called again with the same arguments it continues where it stopped. Sections of
    `overrides`: env, policy (`policy.noise`, `policy.planner`) and collect for the collection;
    the model's and training for the trainings, such as fewer steps.

    Raises CheckpointError for a run without its settings, ConfigError for one on data that were
    not collected, and what `collect` and `train` raise; Interrupted on Ctrl-C, and what is done is
    kept.
    """
    check_range("improve.rounds", rounds, 1, 100)
    check_range("improve.episodes", episodes, 1)
    folder, origin = local(out, where="improve.out"), _Origin.of(local(run, where="improve.run"))
    given = as_overrides(overrides)
    collecting = [each for each in given if each.startswith(OF_COLLECTION)]
    training = [each for each in given if not each.startswith(OF_COLLECTION)]
    data, policy, done = origin.data, Path(run), list[Run]()
    for index in range(1, rounds + 1):
        place = folder / str(index)
        collect(
            origin.env,
            out=place / "planned.zarr",
            episodes=episodes,
            policy=policy,
            workers=workers,
            seed=origin.seed + index,
            overrides=[*origin.collecting, *collecting],
            on_progress=on_progress,
        )
        joined = place / "data.zarr"
        join([data, place / "planned.zarr"], out=joined, on_progress=on_progress)
        found = train(
            origin.model,
            kind=origin.kind,
            data=joined,
            run=place / "run",
            resume=True,
            seed=origin.seed,
            device=device,
            overrides=[*origin.training, *training],
            on_progress=on_progress,
        )
        done.append(found)
        data, policy = joined, found.folder
    return Improved(tuple(done))


@dataclass(frozen=True)
class _Origin:
    """What a run was trained on, and how."""

    kind: str
    model: str
    training: Sequence[str]  # overrides that give its settings
    seed: int
    data: Path
    env: str
    collecting: Sequence[str]  # overrides that give the settings of its data

    @classmethod
    def of(cls, run: Path) -> _Origin:
        """Return the origin of a run folder; CheckpointError or ConfigError if it has none."""
        written = run_folder.written(run)
        kind = next((each for each in KINDS if isinstance(written.get(each), Mapping)), "")
        if not isinstance(written.get(kind, {}).get("name"), str):
            raise ConfigError(f"improve.run: the {run_folder.CONFIG} of {run} names no learner")
        with ZarrStore.open(written["data"]["path"]) as store:
            made = store.settings
        env = made.get("env", {}).get("name")
        if env not in registry.names("env"):
            raise ConfigError(
                f"improve.run: its data {written['data']['path']} were not collected from a "
                "registered env, so that no more can be; collect with the run as policy, and "
                "train on that"
            )
        settings = {kind: _unnamed(written[kind]), "training": written["training"]}
        collected = {"env": _unnamed(made["env"]), "collect": made["collect"]}
        return cls(
            kind,
            written[kind]["name"],
            as_overrides(settings),
            int(written["seed"]),
            Path(written["data"]["path"]),
            env,
            as_overrides(collected),
        )


def _unnamed(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}
