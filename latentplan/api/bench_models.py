"""`bench_models`: models trained on the same data with one budget, and compared as planners.

For each env of a suite, data are collected once. Every model is trained with every seed, and
`calibrated` on its encoder: a regressed dynamics, and proposals. Each plans to the same goals with
its own dynamics and with the calibrated one, without and with these proposals, so that what each
brings is seen; random actions, no motion and the oracle attempt them once.

    OUT/settings.json                         what all cells have in common
    OUT/ENV/data.zarr, controls.json
    OUT/ENV/seed-0/MODEL/own, calibrated      run folders, and trained-*.json beside them
    OUT/ENV/seed-0/MODEL/own-cem.json, ...    cells: every trial of one planner
    OUT/results.json, results.md              made of the cells that are there

What is finished is never done again, so that the same call continues after a kill.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from latentplan import config, foreign
from latentplan.api import bench_page
from latentplan.api.choice import choose
from latentplan.api.collect import collect
from latentplan.api.evaluate import evaluate
from latentplan.api.train import train
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, StoreError, check_range
from latentplan.evaluation import comparison
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.protocols import HasEpisodeLength
from latentplan.training import run_folder
from latentplan.types import OnProgress
from latentplan.urls import local

MODELS = ("cfm", "autoencoder", "joint", "planet", "jepa", "pixel", "keypoints")
PLANNERS = ("cem", "propose", "beam")
SUITE = ("rope", "cloth")
ORDERS = {"rope": "line", "cloth": "grid"}  # of keypoints: in which orders an object is the same


@dataclass(frozen=True)
class Budget:
    """What all models have in common; a rerun must have the same."""

    steps: int = 4000  # of each network
    batch: int = 32  # windows a step, of the models; `calibrated` has its own
    window: int = 5  # observations of a window
    episodes: int = 1500  # collected in each env
    length: int | None = None  # actions of an episode; None: the env's own
    goals: int = 40  # starts and goals
    actions: int | None = None  # of a trial; None: those of an episode of the env
    goal_seed: int = 1  # of these
    held_out: float = 0.1  # share of the episodes that held-out figures are of

    def __post_init__(self) -> None:
        """Raise ConfigError if a number is out of range."""
        for name in ("steps", "episodes", "goals"):
            check_range(f"bench_models.{name}", getattr(self, name), 1)


QUICK = Budget(steps=3, batch=4, episodes=12, length=12, goals=2, actions=3, held_out=0.2)


@dataclass(frozen=True)
class Compared:
    """The results of `bench_models`."""

    envs: Mapping[str, Mapping[str, Any]]  # name -> controls and rows
    results: Path  # results.json
    page: Path  # results.md


class Cell(NamedTuple):
    """One planner of one trained model."""

    dynamics: str  # own or calibrated
    planner: str
    proposals: bool  # of the calibrated inverse model

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.dynamics}-{self.planner}.json"


def bench_models(
    suite: Sequence[str] = SUITE,
    *,
    out: str | Path,
    models: Sequence[str] = MODELS,
    seeds: int = 3,
    planners: Sequence[str] = PLANNERS,
    calibrate: Sequence[str] | None = None,
    data: str | Path | None = None,
    budget: Budget | None = None,
    workers: int | None = None,
    device: str = "cpu",
    on_progress: OnProgress = lambda progress: None,
) -> Compared:
    """Train and compare `models` in the envs of `suite` with seeds 0 to `seeds` - 1.

    `calibrate` are the models on whose encoders `calibrated` is trained as well; None for all.
    `data` is a folder with a store ENV.zarr for each env, in place of collecting. Models, seeds,
    envs and planners may be added in a later call with the same `out`.

    Raises UnknownName for a name of no env, model or planner, ConfigError if `out` has other
    settings, and what `collect`, `train` and `evaluate` raise. Ctrl-C raises Interrupted or
    KeyboardInterrupt; the same call continues.
    """
    check_range("bench_models.seeds", seeds, 1)
    for kind, found in (("env", suite), ("model", models), ("planner", planners)):
        for name in found:
            choose(kind, name)
    folder, budget = local(out, where="bench_models.out"), budget or Budget()
    _check_settings(folder, asdict(budget))
    bench = _Bench(folder, budget, device, workers, on_progress)
    for env in suite:
        store = bench.data(env, None if data is None else Path(data))
        bench.controls(env)
        for seed in range(seeds):
            for model in models:
                calibrated = calibrate is None or model in calibrate
                cells = list(_cells(planners, calibrated=calibrated))
                bench.model(env, store, model, seed, cells)
    return bench.results(suite, models, seeds, planners)


def _cells(planners: Sequence[str], *, calibrated: bool) -> Iterator[Cell]:
    """Yield what a model is evaluated with."""
    for planner in planners:
        preset = config.resolve("planner", planner)
        proposals = bool(preset.values.get("mpc", {}).get("propose"))
        # Beam search extends plans by proposals from predicted latents: by those of its own model.
        if not proposals or (calibrated and preset.base != "beam"):
            yield Cell("own", planner, proposals)
        if calibrated:
            yield Cell("calibrated", planner, proposals)


@dataclass(frozen=True)
class _Bench:
    """The steps of a comparison, each of which leaves a file that is not made again."""

    folder: Path
    budget: Budget
    device: str
    workers: int | None
    on_progress: OnProgress

    def place(self, env: str) -> Path:
        """Return the folder of an env."""
        return self.folder / env.replace("/", "-").replace(":", "-")

    def data(self, env: str, given: Path | None) -> Path:
        """Return the store of an env, collected if none is given; ConfigError if it changed."""
        if given is None:
            store = self.place(env) / "data.zarr"
            length = self.budget.length
            collect(
                env,
                out=store,
                episodes=self.budget.episodes,
                workers=self.workers,
                overrides=[] if length is None else [f"collect.length={length}"],
                on_progress=self.on_progress,
            )
        else:
            store = given / f"{env.replace('/', '-')}.zarr"
            if not store.exists():
                raise StoreError(f"bench_models.data: {given} has no {store.name}; collect it")
        with ZarrStore.open(store) as opened:
            found = run_folder.identity(opened)
        _same(self.place(env) / "data.json", found, where=f"the data of {env}")
        return store

    def controls(self, env: str) -> None:
        """Let random actions, no motion and the oracle attempt every trial."""
        file = self.place(env) / "controls.json"
        if file.exists():
            return
        tried = evaluate(
            policy="noop",  # any: the controls attempt each trial beside it
            env=env,
            episodes=self.budget.goals,
            seed=self.budget.goal_seed,
            overrides=self._trials(env),
            on_progress=self.on_progress,
        )
        names = ("random", "noop", "oracle")
        _write(file, {name: comparison.records(tried.trials, name) for name in names})

    def model(self, env: str, store: Path, model: str, seed: int, cells: Sequence[Cell]) -> None:
        """Train a model with a seed, and evaluate it."""
        place = self.place(env) / f"seed-{seed}" / model
        for name in sorted({cell.dynamics for cell in cells}, reverse=True):  # own comes first
            self._train(env, store, model, seed, place, name)
        for cell in cells:
            if (place / cell.file).exists():
                continue
            overrides = self._trials(env)
            if cell.proposals and cell.dynamics == "own":
                overrides.append(f"mpc.proposer={{run: {json.dumps(str(place / 'calibrated'))}}}")
            tried = evaluate(
                place / cell.dynamics,
                env=env,
                evaluation=comparison.PlannerAlone,
                episodes=self.budget.goals,
                seed=self.budget.goal_seed,
                planner=cell.planner,
                device=self.device,
                overrides=overrides,
                on_progress=self.on_progress,
            )
            found = {"privileged": tried.settings["privileged"], "config": tried.settings["config"]}
            _write(place / cell.file, {**found, "trials": comparison.records(tried.trials)})

    def _train(
        self, env: str, store: Path, model: str, seed: int, place: Path, name: str
    ) -> None:
        """Train a model, or `calibrated` on its encoder, and keep its figures and its cost."""
        done = place / f"trained-{name}.json"
        if done.exists():
            return
        b, began = self.budget, time.process_time()
        shared = {"steps": b.steps, "warmup": min(100, b.steps // 4), "held_out": b.held_out}
        shared |= {"eval_every": b.steps, "save_every": min(500, b.steps)}
        if name == "own":
            own = {**shared, "batch": b.batch, "window": b.window}
            overrides: dict[str, Any] = {
                "training": {**own, "final_rate": 0.02, "weight_decay": 1e-4},
                **_model_settings(env, model),
            }
        else:
            overrides = {
                "model.base.run": str(place / "own"),
                **{f"training.{stage}": shared for stage in ("dynamics", "inverse")},
            }
        found = train(
            model if name == "own" else "calibrated",
            data=store,
            run=place / name,
            resume=True,
            seed=seed,
            device=self.device,
            overrides=overrides,
            on_progress=self.on_progress,
        )
        minutes = (time.process_time() - began) / 60
        networks = 1 if name == "own" else 2
        whole = found.steps == networks * b.steps  # else an earlier call did a part of it
        _write(done, {"figures": dict(found.figures), "minutes": minutes if whole else None})

    def results(
        self, suite: Sequence[str], models: Sequence[str], seeds: int, planners: Sequence[str]
    ) -> Compared:
        """Write results.json and results.md of all cells, and return them."""
        envs = {}
        for env in suite:
            place = self.place(env)
            controls = _read(place / "controls.json")
            rows = [
                row
                for model in models
                for cell in _cells(planners, calibrated=True)
                if (row := _row(place, model, cell, seeds, controls))
            ]
            envs[env] = {
                "data": _read(place / "data.json"),
                "controls": {
                    name: comparison.of_control(each, controls) for name, each in controls.items()
                },
                "rows": rows,
            }
        made = {"settings": asdict(self.budget), **provenance(), "device": self.device}
        results, page = self.folder / "results.json", self.folder / "results.md"
        _write(results, {**made, "envs": envs})
        with replacing(page) as partial:
            partial.write_text(bench_page.render(envs, made), encoding="utf-8")
        return Compared(envs, results, page)

    def _trials(self, env: str) -> list[str]:
        """Return settings of the trials in an env."""
        make, length = choose("env", env).make, self.budget.actions
        if length is None:
            length = make.episode_length if isinstance(make, HasEpisodeLength) else 20
        return ["evaluation.states=0", f"evaluation.length={length}"]


def _model_settings(env: str, model: str) -> dict[str, Any]:
    """Return the settings of a model that depend on the env."""
    base = choose("env", env).name
    orders = ORDERS.get(base)
    return {"model.orders": orders} if model == "keypoints" and orders else {}


def _row(
    place: Path, model: str, cell: Cell, seeds: int, controls: Mapping[str, comparison.Records]
) -> dict[str, Any] | None:
    """Return the figures of a cell over the seeds that have it; None if none has."""
    found = [place / f"seed-{seed}" / model for seed in range(seeds)]
    found = [each for each in found if (each / cell.file).exists()]
    if not found:
        return None
    cells = [_read(each / cell.file) for each in found]
    trained = [_read(each / f"trained-{cell.dynamics}.json") for each in found]
    figures = [each["figures"] for each in trained]
    key = "error" if cell.dynamics == "own" else "dynamics.error_1"
    return {
        "model": model,
        **cell._asdict(),
        "privileged": cells[0]["privileged"],
        **comparison.outcomes([each["trials"] for each in cells], controls),
        "error": _mean([each.get(key) for each in figures]),
        "top1": _mean([each.get("top1") for each in figures]),
        "minutes": _mean([each["minutes"] for each in trained]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    _same(folder / "settings.json", settings, where="the settings")


def _same(file: Path, values: Mapping[str, Any], *, where: str) -> None:
    """Write values, or raise ConfigError unless they are those that the file has."""
    if not file.exists():
        _write(file, values)
        return
    before = _read(file)
    differ = [
        f"{key}: {before.get(key)!r} there, {values.get(key)!r} now"
        for key in sorted({*before, *values})
        if before.get(key) != values.get(key)
    ]
    if differ:
        raise ConfigError(
            f"bench_models.out: {where} in {file} are others ({'; '.join(differ)}); give the same, "
            "or another folder"
        )


def _read(file: Path) -> Any:
    return foreign.read_json(file, error=ConfigError)


def _write(file: Path, values: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
