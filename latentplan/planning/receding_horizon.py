"""Settings of policies that plan, send a chunk of the plan, and replan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentplan.errors import ConfigError, check_range
from latentplan.planning.precision import DTYPES
from latentplan.planning.problem import elastic
from latentplan.planning.roadmap import Roadmap
from latentplan.planning.solver import Solver
from latentplan.protocols import Dynamics, Planner
from latentplan.types import Part, Spec


@dataclass(frozen=True)
class RecedingHorizonConfig:
    """Settings that MPC and the policy `generative` share."""

    chunk: int = 1  # actions sent before planning again; at most the planner's horizon
    deadline_ms: float | None = None  # time limit of `act`, encoding included, ms
    action_rate_limit: tuple[float, ...] = ()  # largest change of each number between steps
    replan_threshold: float | None = None  # replan within a chunk if the error of the predicted
    # latent exceeds this share of the predicted change
    dtype: str = "float32"  # precision of rollouts: float32, tf32 (CUDA), bfloat16 or float16
    proposer: Part = Part("model")  # {run: RUN}: another model whose proposals are candidates
    roadmap: Roadmap.Config = Roadmap.Config()  # subgoals from a graph of stored observations

    def __post_init__(self) -> None:
        """Raise ConfigError if a setting is out of its range."""
        owner = type(self).__qualname__.split(".")[0]
        check_range(f"{owner}.chunk", self.chunk, 1)
        for each in self.action_rate_limit:
            check_range(f"{owner}.action_rate_limit", each, 1e-6)
        for name in ("deadline_ms", "replan_threshold"):
            if (value := getattr(self, name)) is not None:
                check_range(f"{owner}.{name}", value, 0)
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise ConfigError(f"{owner}.dtype: {self.dtype!r} is not one of {known}")

    def check(
        self, owner: str, *, model: Dynamics, planner: Planner, proposers: Sequence[Dynamics]
    ) -> None:
        """Raise ConfigError unless the components of the policy `owner` fit the settings."""
        if isinstance(model, Spec):
            raise ConfigError(
                f"policy {owner}: needs a trained model, found a spec; pass the policy that "
                "latentplan.load returns"
            )
        if self.chunk > planner.horizon:
            limit = f"[1, horizon={planner.horizon}]"
            raise ConfigError(f"{owner}.chunk: {self.chunk} is not within {limit}")
        if isinstance(planner, Solver):
            for tokens in planner.config.budget:
                elastic(model, tokens)
        if self.proposer.run and not proposers:
            raise ConfigError(
                f"{owner}.proposer: {self.proposer.run!r} is loaded by latentplan.load; give a "
                "policy of your own the model itself: proposers=[model]"
            )
