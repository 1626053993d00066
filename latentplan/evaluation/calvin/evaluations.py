"""The registered evaluations `calvin-mtlc` and `calvin-lh`.

The policy and baselines without learning attempt the same tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from latentplan import registry
from latentplan.errors import ConfigError, check_range
from latentplan.evaluation.calvin import rollouts
from latentplan.evaluation.calvin.baselines import Noop, Presser, Random
from latentplan.evaluation.calvin.chains import COUNT, LENGTH, Chain, chains
from latentplan.evaluation.calvin.rollouts import ChainRates, Rates
from latentplan.evaluation.calvin.rollouts import Table as Scene
from latentplan.evaluation.table import Table
from latentplan.protocols import Env, EpisodeStore, Policy, Source

BASELINES: Mapping[str, Callable[[int], Policy]] = {
    "noop": lambda seed: Noop(),
    "random": Random,
    "presser": lambda seed: Presser(),
}
POLICY = "policy"  # name of the evaluated policy among the baselines


@dataclass(frozen=True)
class TaskTrial:
    """A single task, and the success of each policy."""

    task: str
    text: str  # the instruction
    success: Mapping[str, bool]  # by policy


@dataclass(frozen=True)
class ChainTrial:
    """A chain of tasks, and the number that each policy completed in a row."""

    chain: Chain
    done: Mapping[str, int]  # by policy


@dataclass(frozen=True)
class TaskMetrics:
    """Success rates of single tasks."""

    seed: int
    rates: Mapping[str, Rates]  # by policy

    @property
    def episodes(self) -> int:
        """The number of trials."""
        return self.rates[POLICY].total[1]

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        found: dict[str, Any] = {"episodes": self.episodes, "seed": self.seed}
        for name, each in self.rates.items():
            prefix = "" if name == POLICY else f"{name}_"
            found[f"{prefix}success"] = each.rate
            found[f"{prefix}success_ci95"] = each.interval
            found[f"{prefix}tasks"] = {task: list(pair) for task, pair in each.tasks.items()}
        return found

    def table(self) -> Table:
        """Return the success rate by policy."""
        return Table(
            ("single tasks", "success", "95 %"),
            tuple((n, f"{r.rate:.1%}", _interval(r.interval)) for n, r in self.rates.items()),
            (f"{self.episodes} trials",),
        )


@dataclass(frozen=True)
class ChainMetrics:
    """Success rates of chains."""

    seed: int
    rates: Mapping[str, ChainRates]  # by policy

    @property
    def episodes(self) -> int:
        """The number of chains."""
        return len(self.rates[POLICY].done)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        found: dict[str, Any] = {"episodes": self.episodes, "seed": self.seed}
        for name, each in self.rates.items():
            prefix = "" if name == POLICY else f"{name}_"
            found[f"{prefix}in_a_row"] = each.in_a_row
            found[f"{prefix}in_a_row_ci95"] = each.intervals
            found[f"{prefix}mean_in_a_row"] = each.mean
            tasks = each.tasks.tasks
            found[f"{prefix}tasks"] = {task: list(pair) for task, pair in tasks.items()}
        return found

    def table(self) -> Table:
        """Return the shares of chains with 1 to 5 tasks in a row, by policy."""
        return Table(
            ("tasks in a row", *map(str, range(1, LENGTH + 1)), "mean"),
            tuple(
                (name, *(f"{share:.1%}" for share in each.in_a_row), f"{each.mean:.2f}")
                for name, each in self.rates.items()
            ),
            (f"{self.episodes} chains",),
        )


class SingleTasks:
    """CALVIN's MTLC: every annotated window of a data set defines a start and a task."""

    @dataclass(frozen=True)
    class Config:
        """Selection of tasks, and the limit of each."""

        data: str = ""  # data set in CALVIN's format, or an episode store imported from one
        split: str = "validation"  # split of a data set in CALVIN's format
        sentences: str = ""  # checkout of mees/calvin with instructions; "": those of the data
        limit: int = rollouts.SINGLE  # most actions of a task
        baselines: tuple[str, ...] = ("noop", "random")  # also: presser

        def __post_init__(self) -> None:
            """Raise ConfigError for a value out of range."""
            check_range("SingleTasks.limit", self.limit, 1)
            _check_baselines("SingleTasks", self.baselines)

    def __init__(self, config: Config | None = None) -> None:
        """Take the settings."""
        self.config = config or self.Config()

    def count(self, episodes: int | None) -> int:
        """Return the number of trials; ConfigError if there are no data."""
        with _open(self.config.data, self.config.split) as data:
            known = sum(1 for _ in rollouts.trials(data))
        return known if episodes is None else min(episodes, known)

    def trials(
        self, policy: Policy, env: Env, *, episodes: int | None = None, seed: int = 0
    ) -> Iterator[TaskTrial]:
        """Yield trials in the order of the data, as they finish."""
        table, policies = _scene(env), _policies(policy, self.config.baselines, seed)
        texts = rollouts.sentences(self.config.sentences) if self.config.sentences else None
        with _open(self.config.data, self.config.split) as data:
            for trial in islice(rollouts.trials(data, texts=texts), episodes):
                success = {
                    name: next(rollouts.single(p, table, trials=[trial], limit=self.config.limit))
                    for name, p in policies.items()
                }
                done = {name: reached for name, (_, reached) in success.items()}
                yield TaskTrial(trial.task, trial.goal.text, done)

    def figures(self, trial: TaskTrial) -> dict[str, str]:
        """Return the figures shown when a trial finishes, by name."""
        return {trial.task: "success" if trial.success[POLICY] else "failure"}

    def metrics(self, trials: Sequence[TaskTrial], *, seed: int) -> TaskMetrics:
        """Return the metrics of one or more trials."""
        rates = {
            name: rollouts.rates((t.task, t.success[name]) for t in trials)
            for name in trials[0].success
        }
        return TaskMetrics(seed, rates)

    def records(self, trials: Sequence[TaskTrial]) -> list[dict[str, Any]]:
        """Return JSON values of each trial."""
        return [{"task": t.task, "text": t.text, "success": dict(t.success)} for t in trials]


class Chains:
    """CALVIN's LH-MTLC: chains of five tasks, each posed after the one before it succeeded."""

    @dataclass(frozen=True)
    class Config:
        """Selection of chains, and the limit of each task."""

        chains: int = COUNT  # number of chains; only 1000 gives the chains of the benchmark
        sentences: str = ""  # checkout of mees/calvin with instructions; "": the task's name
        limit: int = rollouts.LONG  # most actions of a task
        baselines: tuple[str, ...] = ("noop", "random")  # also: presser

        def __post_init__(self) -> None:
            """Raise ConfigError for a value out of range."""
            check_range("Chains.chains", self.chains, 1, 100_000)
            check_range("Chains.limit", self.limit, 1)
            _check_baselines("Chains", self.baselines)

    def __init__(self, config: Config | None = None) -> None:
        """Take the settings."""
        self.config = config or self.Config()

    def count(self, episodes: int | None) -> int:
        """Return the number of chains."""
        return self.config.chains if episodes is None else min(episodes, self.config.chains)

    def trials(
        self, policy: Policy, env: Env, *, episodes: int | None = None, seed: int = 0
    ) -> Iterator[ChainTrial]:
        """Yield chains in the benchmark's order, as they finish."""
        table, policies = _scene(env), _policies(policy, self.config.baselines, seed)
        texts = rollouts.sentences(self.config.sentences) if self.config.sentences else None
        limit = self.config.limit
        for chain in chains(self.config.chains)[: self.count(episodes)]:
            done = {
                name: next(rollouts.long(p, table, chains=[chain], texts=texts, limit=limit))
                for name, p in policies.items()
            }
            yield ChainTrial(chain, done)

    def figures(self, trial: ChainTrial) -> dict[str, str]:
        """Return the figures shown when a chain finishes, by name."""
        return {"in a row": str(trial.done[POLICY])}

    def metrics(self, trials: Sequence[ChainTrial], *, seed: int) -> ChainMetrics:
        """Return the metrics of one or more chains."""
        drawn = [t.chain for t in trials]
        rates = {
            name: rollouts.chain_rates([t.done[name] for t in trials], of=drawn)
            for name in trials[0].done
        }
        return ChainMetrics(seed, rates)

    def records(self, trials: Sequence[ChainTrial]) -> list[dict[str, Any]]:
        """Return JSON values of each chain."""
        return [
            {"state": dict(t.chain.state), "tasks": list(t.chain.tasks), "done": dict(t.done)}
            for t in trials
        ]


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def _check_baselines(where: str, names: Sequence[str]) -> None:
    for name in names:
        if name not in BASELINES:
            raise ConfigError(
                f"{where}.baselines: {name!r} is not one of {', '.join(sorted(BASELINES))}"
            )


def _policies(policy: Policy, baselines: Sequence[str], seed: int) -> dict[str, Policy]:
    """Return the evaluated policy and its baselines, by name."""
    return {POLICY: policy, **{name: BASELINES[name](seed) for name in baselines}}


def _scene(env: Env) -> Scene:
    """Return the env; ConfigError unless CALVIN's tasks can be tested in it."""
    if not isinstance(env, Scene):
        raise ConfigError(
            f"evaluation calvin: env {env.data_spec.env!r} has no task_info() that CALVIN's tasks "
            "are tested on; use the env calvin"
        )
    return env


def _open(data: str, split: str) -> Any:
    """Open CALVIN's data and return a context manager that closes it."""
    from contextlib import nullcontext

    if not data:
        raise ConfigError(
            "SingleTasks.data: is empty; set evaluation.data to a data set in CALVIN's format"
        )
    if Path(data).suffix == ".zarr" or "://" in data:
        from latentplan.data.store import ZarrStore

        return cast(EpisodeStore, ZarrStore.open(data))
    source = registry.get("source", "calvin")
    return nullcontext(cast(Source, source(Path(data), source.Config(split=split))))
