"""Model predictive control: plan from what is seen, send the first actions, plan again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from latentplan import shapes
from latentplan.errors import ConfigError, PlanningError, ShapeError, check_range
from latentplan.planning import sampling, spaces
from latentplan.protocols import Dynamics, Objective, Planner
from latentplan.types import Array, Observation, Plan

REMEMBERED = 10_000  # calls that the latency is taken from


@dataclass(frozen=True)
class Latency:
    """How long `MPC.act` took, encoding included, over the last calls."""

    count: int  # calls
    p50_ms: float
    p90_ms: float
    p99_ms: float


class MPC:
    """A model, a planner and a goal: `act` turns what the sensors give into an action.

    It remembers what the stateless planner does not: the goal, the last latents, the rest of the
    last plan. Observations need only the keys that the model was trained on; privileged and
    other keys are ignored.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        chunk: int = 1  # actions sent before planning again; at most the planner's horizon
        warm_start: bool = True  # whether a plan starts from what is left of the last one

        def __post_init__(self) -> None:
            """Raise ConfigError where a setting is out of its range."""
            check_range("MPC.chunk", self.chunk, 1)

    def __init__(
        self,
        model: Dynamics,
        planner: Planner,
        *,
        objective: Callable[[Tensor], Objective],
        seed: int = 0,
        config: Config | None = None,
    ) -> None:
        """Take a model, a planner, and what makes an objective of a goal's latent (1, D)."""
        self.model, self.planner = model, planner
        self.config = config or self.Config()
        self.plan: Plan | None = None  # the last one, with its predicted cost
        self._make_objective = objective
        self._objective: Objective | None = None
        self._device = _device(model)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._latents: deque[Tensor] = deque(maxlen=model.context)  # each (1, 1, D)
        self._sent = 0  # actions of the plan
        self._milliseconds: deque[float] = deque(maxlen=REMEMBERED)

    def goal(self, observation: Observation) -> None:
        """Set what to reach: an observation with the model's keys. Raises ShapeError."""
        self._objective = self._make_objective(self._encode("MPC.goal", observation)[:, 0])
        self.plan = None  # it led to another goal

    def act(self, observation: Observation) -> Array:
        """Return the next action (A,) float32: finite and inside the bounds.

        Raises ShapeError where the observation does not fit the model, PlanningError where no
        goal is set or the model gives no finite plan.
        """
        start = perf_counter()
        objective = self._need_goal()
        latent = self._encode("MPC.act", observation)
        self._latents.append(latent)
        if self.plan is None or self._sent == self.config.chunk:
            space = spaces.from_observation(self.model.spec, observation, device=self._device)
            last, self.plan = self.plan, None  # a failed plan must leave nothing to send
            plan = self.planner.plan(
                self._context(self._latents),
                self.model,
                objective=objective,
                space=space,
                generator=self._generator,
                warm_start=self._rest(last),
            )
            horizon = plan.actions.shape[1]
            if self.config.chunk > horizon:
                raise ConfigError(
                    f"MPC.chunk: {self.config.chunk} is not within [1, horizon={horizon}]"
                )
            self.plan, self._sent = plan, 0
        action: Array = self.plan.actions[0, self._sent].float().cpu().numpy().copy()
        self._sent += 1
        self._milliseconds.append((perf_counter() - start) * 1e3)
        return action

    def evaluate(self, observation: Observation, actions: Array) -> Array:
        """Return the predicted cost (N,) of actions (N, A) or (N, H, A), from this observation.

        As if `act` were called now, but nothing is remembered and nothing is drawn. A candidate
        for which the model gives NaN costs infinity.
        """
        objective = self._need_goal()
        candidates = torch.as_tensor(np.asarray(actions), dtype=torch.float32)
        if candidates.ndim == 2:
            candidates = candidates[:, None]
        size = self.model.spec.action.size
        shapes.check("MPC.evaluate.actions", candidates, "N H A", A=size)
        latents = deque(self._latents, self.model.context)
        latents.append(self._encode("MPC.evaluate", observation))
        with torch.no_grad():
            cost = sampling.costs(
                candidates[None].to(self._device),
                self._context(latents),
                self.model,
                objective=objective,
            )
        found: Array = cost[0].cpu().numpy()
        return found

    def reset(self, *, seed: int | None = None) -> None:
        """Forget the episode, not the goal; with a seed, draw as a new MPC of that seed would."""
        self._latents.clear()
        self.plan = None
        if seed is not None:
            self._generator.manual_seed(seed)

    @property
    def latency(self) -> Latency:
        """The measured time of `act`; NaN before its first call."""
        if not self._milliseconds:
            return Latency(0, np.nan, np.nan, np.nan)
        p50, p90, p99 = np.percentile(self._milliseconds, (50, 90, 99))
        return Latency(len(self._milliseconds), float(p50), float(p90), float(p99))

    def _need_goal(self) -> Objective:
        if self._objective is None:
            raise PlanningError("no goal is set: call goal(observation) first")
        return self._objective

    def _encode(self, where: str, observation: Observation) -> Tensor:
        """Return the latent (1, 1, D) of an observation that fits the model."""
        spec = self.model.spec
        if not isinstance(observation, Mapping):
            found = type(observation).__name__
            raise ShapeError(f"{where}: found {found}, need a mapping from names to arrays")
        inputs = {}
        for key, array in spec.observation.items():
            if key in spec.privileged:
                continue
            if key not in observation:
                given = ", ".join(sorted(observation)) or "nothing"
                raise ShapeError(f"{where}: the observation has no {key!r}, only {given}")
            value, wanted = np.asarray(observation[key]), np.dtype(array.dtype)
            if value.shape != array.shape:
                raise ShapeError(f"{where}[{key!r}]: found shape {value.shape}, need {array.shape}")
            if value.dtype != wanted and (value.dtype.kind, wanted.kind) != ("f", "f"):
                raise ShapeError(f"{where}[{key!r}]: found {value.dtype}, need {wanted}")
            with np.errstate(over="ignore"):  # what overflows is found infinite below
                value = np.array(value, wanted, order="C")  # a copy: torch wants it writable
            shapes.check_finite(f"{where}[{key!r}]", value)
            inputs[key] = torch.from_numpy(value).to(self._device)
        with torch.no_grad():
            return self.model.encode({key: x[None, None] for key, x in inputs.items()})

    def _context(self, latents: deque[Tensor]) -> Tensor:
        """Return (1, T, D); before T observations were seen, the first stands for those before."""
        missing = self.model.context - len(latents)
        return torch.cat([*[latents[0]] * missing, *latents], dim=1)

    def _rest(self, plan: Plan | None) -> Tensor | None:
        """Return the warm start: the last plan without what was sent, if anything is left."""
        if plan is None or not self.config.warm_start or self._sent >= plan.actions.shape[1]:
            return None
        return sampling.shift(plan.actions, self._sent)


def _device(model: Dynamics) -> torch.device:
    """Return where the model's weights are."""
    module = cast(nn.Module, model)
    weight = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if weight is None else weight.device
