"""Model predictive control: plan from what is seen, send the first actions, plan again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from time import perf_counter
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from latentplan import shapes
from latentplan.errors import ConfigError, LatentplanError, PlanningError, check_range
from latentplan.planning import spaces
from latentplan.planning.graph import Captured
from latentplan.planning.history import ObservationHistory
from latentplan.planning.problem import Problem
from latentplan.planning.proposer import Proposer
from latentplan.planning.solver import Solver, shift
from latentplan.protocols import (
    ActionProposer,
    ActionSpace,
    Constraint,
    Dynamics,
    Objective,
    Planner,
    Proposal,
    SubgoalModel,
)
from latentplan.types import Array, Context, Observation, Plan

REMEMBERED = 10_000  # calls that the latency is taken from
CARRIED = 4  # sequences of the last plan that the next one starts from
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Latency:
    """How long `MPC.act` took, encoding included, over the last calls."""

    count: int  # calls
    p50_ms: float
    p90_ms: float
    p99_ms: float


class MPC:
    """A model, a planner and a goal: `act` turns what the sensors give into an action.

    It remembers what the stateless planner does not: the goal, the last latents, the last action,
    the rest of the last plan. Observations need only the keys that the model was trained on;
    privileged and other keys are ignored.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        chunk: int = 1  # actions sent before planning again; at most the planner's horizon
        warm_start: bool = True  # whether a plan starts from what is left of the last one
        deadline_ms: float | None = None  # of `act`, encoding included; the best so far is sent
        rate: tuple[float, ...] = ()  # most that each number changes between actions; () for any
        surprise: float | None = None  # plan again where what is seen misses what was predicted
        # by more than this share of the predicted change; for chunk > 1
        dtype: str = "float32"  # of rollouts: float32, tf32 (CUDA), bfloat16 or float16
        graph: bool = False  # a solve is one CUDA graph; needs a CUDA device
        propose: bool = False  # whether actions that the model itself proposes compete
        proposer: str = ""  # run of another model whose proposals compete: folder, file or name
        subgoal: bool = False  # whether the goal is where the model imagines that the task leads
        # within the plan's horizon, anew for every plan; no picture of the goal is needed then

        def __post_init__(self) -> None:
            """Raise ConfigError where a setting is out of its range."""
            check_range("MPC.chunk", self.chunk, 1)
            if self.deadline_ms is not None:
                check_range("MPC.deadline_ms", self.deadline_ms, 0)
            for each in self.rate:
                check_range("MPC.rate", each, 1e-6)
            if self.surprise is not None:
                check_range("MPC.surprise", self.surprise, 0)
            if self.dtype not in DTYPES:
                known = ", ".join(DTYPES)
                raise ConfigError(f"MPC.dtype: {self.dtype!r} is not one of {known}")
            if self.graph and self.deadline_ms is not None:
                raise ConfigError(
                    "MPC.graph: a captured solve runs as a whole and cannot keep deadline_ms; "
                    "set one of them"
                )

    def __init__(
        self,
        model: Dynamics,
        planner: Planner,
        *,
        objective: Callable[[Tensor], Objective],
        seed: int = 0,
        config: Config | None = None,
        proposals: Sequence[Proposal] = (),
        constraints: Sequence[Constraint] = (),
        proposers: Sequence[ActionProposer] = (),
    ) -> None:
        """Take a model, a planner, and what makes an objective of a goal's latent (1, D).

        Proposals are candidates that compete in every plan; proposers are other models that make
        some of what they see; constraints are what imagined latents and actions must keep to.
        Raises ConfigError where settings do not fit models or device.
        """
        self.model, self.planner = model, planner
        self.config = config or self.Config()
        self.proposals, self.constraints = tuple(proposals), tuple(constraints)
        self.plan: Plan | None = None  # the last one, with its predicted cost
        self._make_objective = objective
        self._objective: Objective | None = None
        self._history = ObservationHistory(model)
        self._proposers = tuple(Proposer(each) for each in proposers)
        self._device = self._history.device
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._sent = 0  # actions of the plan
        self._last: Tensor | None = None  # action sent (1, A)
        self._predicted: Tensor | None = None  # latents (H + 1, D) of the plan, the start first
        self._milliseconds: deque[float] = deque(maxlen=REMEMBERED)

        self._own: tuple[Proposal, ...] = ()  # the model's proposals for the task at hand
        needs = getattr(planner, "needs_proposals", False)
        self._proposing = model if isinstance(model, ActionProposer) else None
        if self.config.proposer and not proposers:
            raise ConfigError(
                f"MPC.proposer: {self.config.proposer!r} is loaded by latentplan.load; "
                "give an MPC of your own the model itself: proposers=[model]"
            )
        if (needs and not (self.proposals or proposers)) or self.config.propose:
            if self._proposing is None:
                who = "planner generate" if needs else "MPC.propose"
                name = type(model).__name__
                raise ConfigError(
                    f"{who}: needs a model that proposes actions, such as videoworld, found {name}"
                )
        else:
            self._proposing = None
        if self.config.graph and (self._proposing is not None or proposers):
            raise ConfigError(
                "MPC.graph: a captured solve cannot ask a model for proposals; set graph=false"
            )
        self._subgoal: Callable[[Context, int], Tensor] | None = None
        self._horizon = getattr(getattr(planner, "config", None), "horizon", 1)
        if self.config.subgoal and not isinstance(model, SubgoalModel):
            name = type(model).__name__
            raise ConfigError(
                "MPC.subgoal: needs a model that imagines where a task leads, such as videoworld, "
                f"found {name}"
            )
        self._dtype = DTYPES[self.config.dtype]
        self._imagine = model  # rolls out; the encoder stays in full precision
        if self._dtype != torch.float32:
            self._imagine = cast(Dynamics, deepcopy(cast(nn.Module, model)).to(self._dtype))
        if self._device.type != "cuda" and (self.config.graph or self.config.dtype == "tf32"):
            field = "graph" if self.config.graph else "dtype=tf32"
            raise ConfigError(f"MPC.{field}: needs a CUDA device, the model is on {self._device}")
        if self.config.graph:
            self.planner = Captured(cast(Solver, planner))
        size = model.spec.action.size
        if self.config.rate and (len(self.config.rate) != size or model.spec.pick is not None):
            why = "which are picks" if model.spec.pick is not None else "one rate each"
            found = len(self.config.rate)
            raise ConfigError(f"MPC.rate: {found} rates for actions of {size} numbers, {why}")

    def goal(self, observation: Observation | None = None, *, task: str = "") -> None:
        """Set what to reach: an observation with the model's keys, and what to do, by its name.

        The task is for models that propose or imagine, a sentence where they were trained on
        sentences; with `subgoal` it is all, and for the planner `generate`, which then takes what
        is proposed first. Raises ShapeError, and ConfigError for a task that a model does not know,
        or where nothing says what to reach.
        """
        if self._proposing is not None:
            self._own = (self._proposing.proposal(task),)
        for proposer in self._proposers:
            proposer.goal(task)
        if self.config.subgoal:
            self._subgoal = cast(SubgoalModel, self.model).subgoal(task)
        elif observation is None:
            if not (task and getattr(self.planner, "needs_proposals", False)):
                raise ConfigError(
                    "MPC.goal: needs an observation, or mpc.subgoal=true and a model that imagines "
                    "where a task leads, or planner generate and a task"
                )
            self._objective = _as_offered
        else:
            goal = self._history.encode("MPC.goal", observation)
            self._objective = self._make_objective(goal[:, 0])
        self.plan = None  # it led to another goal

    def act(self, observation: Observation) -> Array:
        """Return the next action (A,) float32: finite, inside the bounds, within the rate.

        Raises ShapeError where the observation does not fit the model, PlanningError where no
        goal is set, the model raises or gives no finite plan, or the deadline is too short.
        """
        start = perf_counter()
        self._need_goal()
        try:
            self._history.observe("MPC.act", observation)
            for proposer in self._proposers:
                proposer.history.observe("MPC.act", observation)
        except LatentplanError:
            self.plan = None  # the rest of it was for what could not be seen
            raise
        if self.plan is None or self._sent == self.config.chunk or self._surprised():
            self._plan(observation, start)
        assert self.plan is not None
        self._last = self.plan.actions[:, self._sent]
        self._sent += 1
        for history in self._histories:
            history.send(self._last)
        action: Array = self._last[0].float().cpu().numpy().copy()
        self._milliseconds.append((perf_counter() - start) * 1e3)
        return action

    def _plan(self, observation: Observation, start: float) -> None:
        """Make the plan for what is seen now."""
        c = self.config
        last, self.plan = self.plan, None  # a failed plan must leave nothing to send
        left = None
        context = self._history.context()
        objective = self._objective_from(context)
        if c.deadline_ms is not None:
            encoding = (perf_counter() - start) * 1e3
            left = c.deadline_ms - encoding
            if left <= 0:
                raise PlanningError(
                    f"MPC.deadline_ms: {c.deadline_ms:g} ms are over before planning begins: "
                    f"encoding took {encoding:.1f} ms; give more"
                )
        with _matmul(c.dtype):
            plan = self.planner.plan(
                _cast(context, self._dtype),
                self._imagine,
                objective=objective,
                space=self._space(observation),
                generator=self._generator,
                warm_start=self._rest(last),
                proposals=(*self.proposals, *self._own, *self._proposers),
                constraints=self.constraints,
                deadline_ms=left,
            )
        horizon = plan.actions.shape[1]
        if c.chunk > horizon:
            raise ConfigError(f"MPC.chunk: {c.chunk} is not within [1, horizon={horizon}]")
        if c.surprise is not None and c.chunk > 1:
            with torch.no_grad():
                prepared = self.model.prepare(context)
                ahead = self.model.rollout(prepared, plan.actions[:, None])[0, 0]
            self._predicted = torch.cat([context.latents[0, -1:], ahead])
        self.plan, self._sent = plan, 0

    def _surprised(self) -> bool:
        """Whether the last latent is too far from where the plan should have led by now."""
        if self.config.surprise is None or self._predicted is None:
            return False
        start, predicted = self._predicted[0], self._predicted[self._sent]
        missed = (self._history.context().latents[0, -1] - predicted).norm()
        # Negated, so that a latent that is NaN surprises: no action follows from it.
        return not bool(missed <= self.config.surprise * (predicted - start).norm())

    def _space(self, observation: Observation) -> ActionSpace:
        if not self.config.rate:
            return spaces.from_observation(self.model.spec, observation, device=self._device)
        action = self.model.spec.action
        low, high, rate = (
            torch.tensor(values, dtype=torch.float32, device=self._device)
            for values in (action.low, action.high, self.config.rate)
        )
        return spaces.Box(low, high, rate=rate, previous=self._last)

    def sent(self, action: Array) -> None:
        """Record the action (A,) that was really sent, where it is not the one `act` returned.

        Such as what `Robot.send` returns: the next plan starts from it.
        """
        given = torch.as_tensor(np.asarray(action, np.float32))
        shapes.check("MPC.sent.action", given, "A", A=self.model.spec.action.size)
        for history in self._histories:
            history.send(given[None])
        spec = self.model.spec.action
        self._last = given.clamp(torch.tensor(spec.low), torch.tensor(spec.high))[None]
        self._last = self._last.to(self._device)

    @property
    def _histories(self) -> tuple[ObservationHistory, ...]:
        return self._history, *(each.history for each in self._proposers)

    def evaluate(self, observation: Observation, actions: Array) -> Array:
        """Return the predicted cost (N,) of actions (N, A) or (N, H, A), from this observation.

        As if `act` were called now, but nothing is remembered and nothing is drawn. A candidate
        for which the model gives NaN costs infinity.
        """
        self._need_goal()
        candidates = torch.as_tensor(np.asarray(actions), dtype=torch.float32)
        if candidates.ndim == 2:
            candidates = candidates[:, None]
        size = self.model.spec.action.size
        shapes.check("MPC.evaluate.actions", candidates, "N H A", A=size)
        context = self._history.context_at("MPC.evaluate", observation)
        with torch.no_grad(), _matmul(self.config.dtype):
            problem = Problem(
                _cast(context, self._dtype),
                self._imagine,
                self._objective_from(context),
                self._space(observation),
                self._generator,
                candidates.shape[1],
            ).prepare()
            cost = problem.score(candidates[None].to(self._device)).cost
        found: Array = cost[0].cpu().numpy()
        return found

    def reset(self, *, seed: int | None = None) -> None:
        """Forget the episode, not the goal; with a seed, draw as a new MPC of that seed would."""
        for history in self._histories:
            history.clear()
        self.plan = self._last = None
        if seed is not None:
            self._generator.manual_seed(seed)

    @property
    def latency(self) -> Latency:
        """The measured time of `act`; NaN before its first call."""
        if not self._milliseconds:
            return Latency(0, np.nan, np.nan, np.nan)
        p50, p90, p99 = np.percentile(self._milliseconds, (50, 90, 99))
        return Latency(len(self._milliseconds), float(p50), float(p90), float(p99))

    def _need_goal(self) -> None:
        if self._objective is None and self._subgoal is None:
            raise PlanningError("no goal is set: call goal(observation) first")

    def _objective_from(self, context: Context) -> Objective:
        """Return what a plan from `context` costs."""
        if self._subgoal is not None:
            return self._make_objective(self._subgoal(context, self._horizon))
        assert self._objective is not None
        return self._objective

    def _rest(self, plan: Plan | None) -> Tensor | None:
        """Return the warm start: the last plan without what was sent, if anything is left."""
        if plan is None or not self.config.warm_start or self._sent >= plan.actions.shape[1]:
            return None
        elites = plan.actions[:, None] if plan.elites is None else plan.elites
        best = torch.cat([plan.actions[:, None], elites[:, : CARRIED - 1]], dim=1)
        return shift(best, self._sent)


def _cast(context: Context, dtype: torch.dtype) -> Context:
    memory = None if context.memory is None else context.memory.to(dtype)
    latents, actions = context.latents.to(dtype), context.actions.to(dtype)
    return replace(context, latents=latents, actions=actions, memory=memory)


def _as_offered(latents: Tensor, actions: Tensor) -> Tensor:
    """Return the cost (B, N) of who does not compare: what is proposed first is best."""
    place = torch.arange(actions.shape[1], dtype=latents.dtype, device=latents.device)
    return place.expand(len(actions), -1)


@contextmanager
def _matmul(dtype: str) -> Iterator[None]:
    """Let float32 products on CUDA round to TF32 in here, where `dtype` asks for it."""
    if dtype != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
