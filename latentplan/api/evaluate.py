"""`latentplan.evaluate`: a trained run, a planner or a policy, measured in an env."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentplan import config, registry
from latentplan.api import results
from latentplan.api.choice import Choice, Overrides, as_overrides, choose
from latentplan.api.fit import check_fit
from latentplan.errors import CheckpointError, ConfigError, Interrupted, check_range
from latentplan.evaluation.baselines import declared
from latentplan.files import replacing
from latentplan.protocols import (
    AdaptableEnv,
    Env,
    EnvPolicy,
    Evaluation,
    HasEpisodeLength,
    IllustratedEvaluation,
    LanguageConfig,
    Policy,
)
from latentplan.types import OnProgress, Progress
from latentplan.urls import public_values


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    metrics: Any  # with to_json() and table(); of `goals`, an `evaluation.metrics.Metrics`
    trials: tuple[Any, ...]  # of `goals`, each an `evaluation.goals.Trial`
    files: Mapping[str, Path]  # that were written, by name; empty without `out`
    settings: Mapping[str, Any]  # env, model, policy, ..., config, versions: all it was made with


@dataclass(frozen=True)
class _Evaluated:
    """A policy to be evaluated, not yet built, and all settings by section."""

    build: Callable[[Env], Policy]
    env: Choice
    settings: Mapping[str, Any]
    name: str  # for the title of the results
    about: Mapping[str, Any]  # model, policy, planner, objective, checkpoint


def evaluate(
    agent: str | Path | type[Policy] | Policy | None = None,
    *,
    env: str | type[Env] | Env | None = None,
    evaluation: str | type[Evaluation] = "goals",
    episodes: int | None = None,
    seed: int = 0,
    policy: str | None = None,
    planner: str | None = None,
    objective: str = "goal",
    goal_text: str = "",
    out: str | Path | None = None,
    device: str = "cpu",
    overrides: Overrides = (),
    on_progress: OnProgress | None = None,
) -> Evaluated:
    """Evaluate a policy in an env, beside baselines, and return the figures.

    `agent` is a run (folder, file or shipped checkpoint), or the class or object of a policy, such
    as the one that `latentplan.load` returns; without it `policy` names a registered one that needs
    no model (`random`, `oracle`). `env` is a name, a class or an object, by default the env of the
    run's data. `evaluation` is a registered one: `goals`, `calvin-mtlc`, `calvin-lh`. Of a run,
    `policy` (mpc or generative), `planner` and `objective` are by default the model's own, and the
    distance to the goal; `goal_text` replaces the env's instructions. With a folder `out`,
    metrics.json, episodes.json, report.html, video.mp4 and config.yaml are written there. Sections
    of `overrides`: env, evaluation, and planner, objective, mpc or generative of a run, else
    policy. Ctrl-C raises Interrupted with the figures of the trials done so far, if any. Raises
    CheckpointError if the model does not fit the env.
    """
    check_range("evaluate.episodes", 1 if episodes is None else episodes, 1)
    check_range("evaluate.seed", seed, 0)
    kind, given = choose("evaluation", evaluation), as_overrides(overrides)
    named: dict[str, Any] = {"policy": policy, "planner": planner, "objective": objective}
    if isinstance(agent, str | Path):
        found = _of_run(agent, env, kind, named, goal_text, seed, device, given)
    else:
        found = _of_policy(_choose(agent, **named), env, kind, goal_text, given)
    made_with = {
        "env": found.env.name,
        **found.about,
        "config": {name: config.to_values(value) for name, value in found.settings.items()},
    }
    evaluator: Evaluation = kind.build(found.settings["evaluation"])
    world: Env = found.env.build(found.settings["env"])
    try:
        acts = found.build(world)
        made_with["privileged"] = list(declared(acts))
        with nullcontext() if out is None else results.folder(out) as folder:
            name = found.env.name
            trials, stopped = _run(evaluator, acts, world, name, episodes, seed, on_progress)
            done = _finish(evaluator, trials, seed, folder, found.name, made_with, device)
    finally:
        if found.env.instance is None:
            world.close()
    if stopped:
        raise Interrupted(done)
    return done


def _choose(agent: Any, *, policy: str | None, planner: str | None, objective: str) -> Choice:
    """Return the policy that is not of a run: an object or a class, or a registered name."""
    if planner is not None or objective != "goal" or (agent is not None and policy is not None):
        raise ConfigError(
            "evaluate.planner: only a run takes a policy, a planner and an objective by name; "
            "an object has its own: latentplan.load(run, planner=..., objective=...)"
        )
    if agent is None and policy is None:
        raise ConfigError("evaluate.run: found neither a run nor a policy; give one of them")
    return choose("policy", policy if agent is None else agent)


def _run(
    evaluator: Evaluation,
    policy: Policy,
    env: Env,
    name: str,
    episodes: int | None,
    seed: int,
    on_progress: OnProgress | None,
) -> tuple[tuple[Any, ...], bool]:
    """Return the trials that were done, and whether Ctrl-C ended them."""
    total, trials = evaluator.count(episodes), []
    try:
        for trial in evaluator.trials(policy, env, episodes=episodes, seed=seed):
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
    goal_text: str,
    seed: int,
    device: str,
    overrides: Sequence[str],
) -> _Evaluated:
    """Return the policy of a trained model, with the env of its data by default."""
    from latentplan.api import load
    from latentplan.training import checkpoint

    load.check_names(**named)
    file = checkpoint.find(run)
    found = checkpoint.load(file, device=device)
    parts = load.choose(found.model, **named)
    if env is None and not found.spec.env:
        raise CheckpointError(f"run {str(run)!r}: does not say which env it is for; name one")
    if env is None and found.spec.env not in registry.names("env"):  # a file names no module
        raise CheckpointError(
            f"run {str(run)!r}: its data come from env {found.spec.env!r}, which is not "
            "registered; name the env"
        )
    world = choose("env", found.spec.env if env is None else env)
    adapted: dict[str, Any] = {}
    if isinstance(world.make, AdaptableEnv):
        adapted = world.make.settings_for(found.spec)
    sentences = isinstance(found.config, LanguageConfig) and found.config.language
    instruction = {"instruction": "text"} if sentences else {}
    settings = config.load(
        {**parts.sections, "env": world.config, "evaluation": evaluation.config},
        preset={
            **parts.presets,
            "env": adapted | dict(world.values),
            "evaluation": _preset(evaluation, world, goal_text, **instruction),
        },
        overrides=overrides,
    )
    about = {
        "model": found.name,
        "policy": parts.policy,
        "planner": parts.planner,
        "objective": named["objective"],
        "checkpoint": {"run": str(run), "step": found.step, "sha256": checkpoint.digest(file)},
    }

    def build(world: Env) -> Policy:
        check_fit(f"run {str(run)!r}", found.spec, world.data_spec)
        return load.assemble(found, parts, settings, seed=seed)

    return _Evaluated(build, world, settings, Path(run).name, about)


def _of_policy(
    policy: Choice, env: Any, evaluation: Choice, goal_text: str, overrides: Sequence[str]
) -> _Evaluated:
    """Return a policy that needs no run."""
    if env is None:
        raise ConfigError("evaluate.env: found None; without a run there is no default; name one")
    if policy.name in ("mpc", "generative") and policy.instance is None:
        raise ConfigError(f"evaluate.run: policy {policy.name!r} needs a run: its model")
    world = choose("env", env)
    settings = config.load(
        {"policy": policy.config, "env": world.config, "evaluation": evaluation.config},
        preset={
            "policy": dict(policy.values),
            "env": dict(world.values),
            "evaluation": _preset(evaluation, world, goal_text),
        },
        overrides=overrides,
    )

    def build(world: Env) -> Policy:
        made: Policy = policy.build(settings["policy"], world.data_spec)
        if isinstance(made, EnvPolicy):
            made.attach(world)
        return made

    name = policy.name.rpartition(":")[2]
    about = {
        "model": None,
        "policy": policy.name,
        "planner": "",
        "objective": None,
        "checkpoint": None,
    }
    return _Evaluated(build, world, settings, name, about)


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
    device: str,
) -> Evaluated:
    """Return the figures, written into a folder if there is one."""
    from latentplan.evaluation.provenance import provenance

    metrics = evaluator.metrics(trials, seed=seed)
    made_with = public_values({**made_with, **provenance(), "device": device})
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

    named = ("env", "policy", "planner", "objective", "checkpoint", "privileged", "device")
    settings = {k: made_with[k] for k in named}
    settings |= {"episodes": metrics.episodes, "seed": metrics.seed, "config": made_with["config"]}
    texts = {
        "config.yaml": yaml.safe_dump(settings, sort_keys=False),
        "episodes.json": json.dumps(evaluator.records(trials)),
    }
    if read := made_with["privileged"]:
        name += f" (reads {', '.join(read)} of the simulator)"
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
