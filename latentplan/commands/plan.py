"""`latentplan plan`: a trained model drives an env to held-out goals, beside its controls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentplan import config, registry
from latentplan.commands import results
from latentplan.errors import CheckpointError, check_range
from latentplan.protocols import AdaptableEnv, HasEpisodeLength

if TYPE_CHECKING:
    from latentplan.evaluation.metrics import Metrics
    from latentplan.evaluation.protocol import Trial
    from latentplan.types import Spec


def run(
    run: str | Path,
    *,
    env: str | None = None,
    episodes: int = 8,
    seed: int = 0,
    planner: str | None = None,
    objective: str = "goal",
    goal_text: str = "",
    out: str | Path | None = None,
    device: str = "cpu",
    overrides: Sequence[str] = (),
) -> Metrics:
    """Evaluate a run and return the figures; `out` then holds all that is known of them.

    Writes metrics.json, episodes.json, report.html, video.mp4 and config.yaml. `env` is by default
    the one that the model's data came from, and its settings those that the model asks for; the
    planner is by default the model's own. A task is told by its name, to a model trained with
    `language` by the env's sentence; `goal_text` replaces either. Sections of `overrides`: planner,
    objective, mpc, env, evaluation. Ctrl-C reports the trials done so far, then goes on up. Raises
    CheckpointError where the model does not fit the env.
    """
    from latentplan.commands.load import assemble, choose, own_planner
    from latentplan.commands.progress import track
    from latentplan.evaluation.metrics import summarise
    from latentplan.evaluation.protocol import Evaluation
    from latentplan.evaluation.provenance import provenance
    from latentplan.training import checkpoint

    check_range("--episodes", episodes, 1)
    check_range("--seed", seed, 0)
    planner = planner or own_planner(checkpoint.find(run))
    parts = choose(planner=planner, objective=objective)
    file = checkpoint.find(run)
    found = checkpoint.load(file, device=device)
    if not (env or found.spec.env):
        raise CheckpointError(f"run {str(run)!r}: does not say which env it is for; give --env")
    env_preset = config.resolve("env", env or found.spec.env)
    env_class = registry.get("env", env_preset.base)
    settings = config.load(
        {**parts.sections, "env": env_class.Config, "evaluation": Evaluation.Config},
        preset={
            **parts.presets,
            "env": (
                env_class.settings_for(found.spec) if isinstance(env_class, AdaptableEnv) else {}
            )
            | dict(env_preset.values),
            "evaluation": {
                **(
                    {"length": env_class.episode_length}
                    if isinstance(env_class, HasEpisodeLength)
                    else {}
                ),
                **({"told": "text"} if getattr(found.config, "language", False) else {}),
                "goal_text": goal_text,
            },
        },
        overrides=overrides,
    )
    agent = assemble(found, parts, settings, seed=seed)
    world = env_class(settings["env"])
    try:
        check_fit(f"run {str(run)!r}", found.spec, world.data_spec)
        name = Path(run).parent.name if Path(run).is_file() else Path(run).resolve().name
        folder = results.folder(f"plan-{name}", out)
        trials: list[Trial] = []
        stopped: KeyboardInterrupt | None = None
        evaluation = Evaluation(agent, world, config=settings["evaluation"])
        with track(episodes, f"plan {env_preset.base}", "trials") as bar:
            try:
                for trial in evaluation.trials(episodes=episodes, seed=seed):
                    trials.append(trial)
                    distance = trial.attempts["planner"].distance
                    bar.advance(cm=f"{100 * distance[0]:.1f} to {100 * distance[-1]:.1f}")
            except KeyboardInterrupt as e:
                if not trials:
                    raise
                stopped = e
    finally:
        world.close()

    metrics = summarise(trials, seed=seed)
    made_with = {
        "env": env_preset.base,
        "model": found.name,
        "planner": planner,
        "objective": objective,
        "checkpoint": {"run": str(run), "step": found.step, "sha256": _digest(file)},
        "config": {name: config.to_values(value) for name, value in settings.items()},
        **provenance(),
        "device": device,
    }
    _write(folder, trials, metrics, made_with=made_with)
    _print(metrics, folder)
    if stopped is not None:
        raise stopped
    return metrics


def check_fit(where: str, model: Spec, env: Spec) -> None:
    """Raise CheckpointError that says what differs where a model cannot be used in an env."""
    wrong = []
    for key, array in model.observation.items():
        if key in model.privileged:
            continue
        need, given = (array.shape, array.dtype), env.observation.get(key)
        if given is None:
            wrong.append(f"observation {key!r} is missing")
        elif key in env.privileged:
            wrong.append(f"observation {key!r} is privileged there")
        elif (given.shape, given.dtype) != need:
            wrong.append(
                f"observation {key!r} is {given.dtype} {given.shape}, need {need[1]} {need[0]}"
            )
    for bound in ("low", "high"):
        have, want = getattr(env.action, bound), getattr(model.action, bound)
        if have != want:
            wrong.append(f"action.{bound} is {have}, need {want}")
    have, want = (
        {} if spec.action.convention is None else asdict(spec.action.convention)
        for spec in (env, model)
    )
    for field in sorted(have.keys() | want.keys()):
        if have.get(field) != want.get(field):
            wrong.append(
                f"action.convention.{field} is {have.get(field)!r}, need {want.get(field)!r}"
            )
    if model.dt != env.dt:
        wrong.append(f"dt is {env.dt} s, need {model.dt} s")
    if wrong:
        raise CheckpointError(
            f"{where}: does not fit env {env.env!r}: {'; '.join(wrong)}; "
            "use the env and settings that it was trained with"
        )


def _write(
    folder: Path, trials: Sequence[Trial], metrics: Metrics, *, made_with: Mapping[str, Any]
) -> None:
    import yaml

    from latentplan.evaluation import report, video
    from latentplan.evaluation.metrics import per_episode
    from latentplan.files import replacing

    title = f"{Path(made_with['checkpoint']['run']).name} on {made_with['env']}"
    settings = {k: made_with[k] for k in ("env", "planner", "objective", "checkpoint", "device")}
    settings |= {"episodes": metrics.episodes, "seed": metrics.seed, "config": made_with["config"]}
    texts = {
        "config.yaml": yaml.safe_dump(settings, sort_keys=False),
        "episodes.json": json.dumps(per_episode(trials)),
    }
    texts["report.html"] = report.render(
        trials,
        metrics,
        title=title,
        config=texts["config.yaml"],
        provenance={k: made_with[k] for k in ("created", "command", "versions", "machine")},
    )
    texts["metrics.json"] = json.dumps({**metrics.to_json(), **made_with}, indent=2)
    for name, text in texts.items():  # the figures last: where they are, so is what explains them
        with replacing(folder / name) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    if all(trial.goal is not None for trial in trials):
        video.write(folder / "video.mp4", trials)


def _print(metrics: Metrics, folder: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("mean distance to the goal, cm", box=SIMPLE_HEAD)
    for column in ("start", "final", "best"):
        table.add_column(column, justify="right")
    m = metrics
    for name, final, best in (
        ("planner", m.final, m.best),
        ("random", m.random_final, m.random_best),
        ("noop", m.noop_final, m.noop_best),
        ("oracle", m.oracle_final, m.oracle_best),
    ):
        table.add_row(name, *(f"{100 * value:.1f}" for value in (m.start, final, best)))
    Console().print(table)
    low, high = m.progress_ci95
    interval = f" (95 %: {low:.2f} to {high:.2f})" if m.episodes > 1 else ""
    count = f"{m.episodes} trials" if m.episodes > 1 else "1 trial"
    print(f"progress {m.progress:.2f}{interval} over {count}")
    if m.success is not None:
        print(f"success {m.success:.0%}, oracle {m.oracle_success:.0%}")
    print(f"report: {folder / 'report.html'}")


def _digest(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
