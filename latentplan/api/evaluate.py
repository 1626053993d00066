"""`latentplan.evaluate`: a trained run, a planner or a policy, measured in an env."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentplan import config
from latentplan.api import results
from latentplan.api.choice import Choice, Overrides, as_overrides, choose
from latentplan.api.fit import check_fit
from latentplan.errors import CheckpointError, ConfigError, Interrupted, check_range
from latentplan.files import replacing
from latentplan.protocols import (
    AdaptableEnv,
    Env,
    Evaluation,
    HasEpisodeLength,
    IllustratedEvaluation,
)
from latentplan.types import OnProgress, Progress


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    metrics: Any  # with to_json() and table(); of `goals`, an `evaluation.metrics.Metrics`
    trials: tuple[Any, ...]  # of `goals`, each an `evaluation.goals.Trial`
    files: Mapping[str, Path]  # that were written, by name; empty without `out`
    settings: Mapping[str, Any]  # env, model, planner, ..., config, versions: all it was made with


@dataclass(frozen=True)
class _Agent:
    """What is evaluated, and what is said of it in the results."""

    acts: Any
    name: str
    about: Mapping[str, Any]
    settings: Mapping[str, Any]  # by section


def evaluate(
    agent: str | Path | Any,
    *,
    env: str | type[Env] | Env | None = None,
    evaluation: str | type[Evaluation] = "goals",
    episodes: int | None = None,
    seed: int = 0,
    planner: str | None = None,
    objective: str = "goal",
    goal_text: str = "",
    out: str | Path | None = None,
    device: str = "cpu",
    overrides: Overrides = (),
    on_progress: OnProgress | None = None,
) -> Evaluated:
    """Evaluate an agent in an env, beside baselines, and return the figures.

    `agent` is a run (folder, file or shipped checkpoint), or an object with `reset`, `goal`, `act`
    and `evaluate` such as `latentplan.load` returns; `env` a name, a class or an object, by default
    the env of the run's data. `evaluation` is a registered one: `goals`, `calvin-mtlc`,
    `calvin-lh`. `planner` and `objective` are of a run: by default the model's own, and the
    distance to the goal; `goal_text` replaces the env's instructions. With a folder `out`,
    metrics.json, episodes.json, report.html, video.mp4 and config.yaml are written there. Sections
    of `overrides`: env, evaluation, and of a run planner, objective, mpc. Ctrl-C raises
    Interrupted with the figures of the trials done so far, if any. Raises CheckpointError if the
    model does not fit the env.
    """
    check_range("evaluate.episodes", 1 if episodes is None else episodes, 1)
    check_range("evaluate.seed", seed, 0)
    kind, given = choose("evaluation", evaluation), as_overrides(overrides)
    named = {"planner": planner, "objective": objective, "goal_text": goal_text}
    if isinstance(agent, str | Path):
        found, world, settings = _of_run(agent, env, kind, named, seed, device, given)
    else:
        found, world, settings = _of_object(agent, env, kind, named, given)
    made_with = {
        "env": world.name,
        **found.about,
        "config": {name: config.to_values(value) for name, value in settings.items()},
        "device": device,
    }
    evaluator: Evaluation = kind.build(settings["evaluation"])
    built: Env = world.build(settings.get("env"))
    try:
        spec = found.acts.model.spec if isinstance(agent, str | Path) else None
        if spec is not None:
            check_fit(f"run {str(agent)!r}", spec, built.data_spec)
        with nullcontext() if out is None else results.folder(out) as folder:
            trials, stopped = _run(
                evaluator, found.acts, built, world.name, episodes, seed, on_progress
            )
            done = _finish(evaluator, trials, seed, folder, found.name, made_with)
    finally:
        if world.instance is None:
            built.close()
    if stopped:
        raise Interrupted(done)
    return done


def _run(
    evaluator: Evaluation,
    agent: Any,
    env: Env,
    name: str,
    episodes: int | None,
    seed: int,
    on_progress: OnProgress | None,
) -> tuple[tuple[Any, ...], bool]:
    """Return the trials that were done, and whether Ctrl-C ended them."""
    total, trials = evaluator.count(episodes), []
    try:
        for trial in evaluator.trials(agent, env, episodes=episodes, seed=seed):
            trials.append(trial)
            if on_progress is not None:
                figures = evaluator.figures(trial)
                on_progress(Progress(f"plan {name}", "trials", len(trials), total, figures))
    except KeyboardInterrupt:
        if not trials:
            raise
        return tuple(trials), True
    return tuple(trials), False


def _of_run(
    run: str | Path,
    env: Any,
    evaluation: Choice,
    named: Mapping[str, Any],
    seed: int,
    device: str,
    overrides: Sequence[str],
) -> tuple[_Agent, Choice, Mapping[str, Any]]:
    """Return a trained model with its planner, the env, and all settings by section."""
    from latentplan.api import load
    from latentplan.training import checkpoint

    planner = named["planner"] or load.own_planner(checkpoint.find(run))
    parts = load.choose(planner=planner, objective=named["objective"])
    file = checkpoint.find(run)
    found = checkpoint.load(file, device=device)
    if env is None and not found.spec.env:
        raise CheckpointError(f"run {str(run)!r}: does not say which env it is for; name one")
    world = choose("env", found.spec.env if env is None else env)
    adapted: dict[str, Any] = {}
    if isinstance(world.make, AdaptableEnv):
        adapted = world.make.settings_for(found.spec)
    instruction = {"instruction": "text"} if getattr(found.config, "language", False) else {}
    settings = config.load(
        {**parts.sections, "env": world.config, "evaluation": evaluation.config},
        preset={
            **parts.presets,
            "env": adapted | dict(world.values),
            "evaluation": _preset(evaluation, world, named["goal_text"], **instruction),
        },
        overrides=overrides,
    )
    about = {
        "model": found.name,
        "planner": planner,
        "objective": named["objective"],
        "checkpoint": {"run": str(run), "step": found.step, "sha256": _digest(file)},
    }
    agent = load.assemble(found, parts, settings, seed=seed)
    return _Agent(agent, Path(run).name, about, settings), world, settings


def _of_object(
    agent: Any, env: Any, evaluation: Choice, named: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[_Agent, Choice, Mapping[str, Any]]:
    """Return an object that acts, the env, and all settings by section."""
    if named["planner"] is not None or named["objective"] != "goal":
        raise ConfigError(
            "evaluate.planner: an object has its planner and objective already; load the run with "
            "others: latentplan.load(run, planner=..., objective=...)"
        )
    if env is None:
        raise ConfigError("evaluate.env: found None; an object needs an env to be evaluated in")
    world = choose("env", env)
    settings = config.load(
        {"env": world.config, "evaluation": evaluation.config},
        preset={
            "env": dict(world.values),
            "evaluation": _preset(evaluation, world, named["goal_text"]),
        },
        overrides=overrides,
    )
    name = type(agent).__name__
    about = {"model": None, "planner": name, "objective": None, "checkpoint": None}
    return _Agent(agent, name, about, settings), world, settings


def _preset(evaluation: Choice, env: Choice, goal_text: str, **values: Any) -> dict[str, Any]:
    """Return the settings of an evaluation that follow from the env and the model."""
    if evaluation.name != "goals":
        if goal_text:
            raise ConfigError("evaluate.goal_text: is for the evaluation goals alone")
        return dict(evaluation.values)
    if isinstance(env.make, HasEpisodeLength):
        values["length"] = env.make.episode_length
    return {**values, "goal_text": goal_text, **evaluation.values}


def _finish(
    evaluator: Evaluation,
    trials: tuple[Any, ...],
    seed: int,
    folder: Path | None,
    name: str,
    made_with: Mapping[str, Any],
) -> Evaluated:
    """Return the figures, written into a folder if there is one."""
    from latentplan.evaluation.provenance import provenance

    metrics = evaluator.metrics(trials, seed=seed)
    device = made_with["device"]
    made_with = {**{k: v for k, v in made_with.items() if k != "device"}, **provenance()}
    made_with["device"] = device
    files: dict[str, Path] = {}
    if folder is not None:
        files = _write(folder, evaluator, trials, metrics, name=name, made_with=made_with)
    return Evaluated(metrics, trials, files, made_with)


def _write(
    folder: Path,
    evaluator: Evaluation,
    trials: tuple[Any, ...],
    metrics: Any,
    *,
    name: str,
    made_with: Mapping[str, Any],
) -> dict[str, Path]:
    """Write all that is known of an evaluation, and return the files by name."""
    import yaml

    settings = {k: made_with[k] for k in ("env", "planner", "objective", "checkpoint", "device")}
    settings |= {"episodes": metrics.episodes, "seed": metrics.seed, "config": made_with["config"]}
    texts = {
        "config.yaml": yaml.safe_dump(settings, sort_keys=False),
        "episodes.json": json.dumps(evaluator.records(trials)),
    }
    drawn: IllustratedEvaluation | None = None
    if isinstance(evaluator, IllustratedEvaluation):
        drawn = evaluator
        texts["report.html"] = drawn.report(
            trials,
            metrics,
            title=f"{name} on {made_with['env']}",
            config=texts["config.yaml"],
            provenance={k: made_with[k] for k in ("created", "command", "versions", "machine")},
        )
    texts["metrics.json"] = json.dumps({**metrics.to_json(), **made_with}, indent=2)
    files = {}
    for file, text in texts.items():  # the figures last, after what explains them
        files[file] = folder / file
        with replacing(files[file]) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    if drawn is not None and drawn.video(trials, folder / "video.mp4"):
        files["video.mp4"] = folder / "video.mp4"
    return files


def _digest(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
