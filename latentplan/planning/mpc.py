"""Model predictive control: encode the observation, plan, send the first actions, replan."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentplan import registry, shapes
from latentplan.errors import ConfigError, PlanningError, check_range
from latentplan.nn.torch_settings import own_torch_settings
from latentplan.planning import spaces
from latentplan.planning.exclusive import exclusive
from latentplan.planning.history import Histories
from latentplan.planning.latency import Latency, Stopwatch, remaining
from latentplan.planning.model_planner import ModelPlanner, Prediction
from latentplan.planning.model_proposal import ModelProposal, OwnProposal
from latentplan.planning.precision import DTYPES
from latentplan.planning.solver import carry_over
from latentplan.protocols import (
    ActionProposer,
    Constraint,
    Dynamics,
    GoalChecker,
    ObjectiveFactory,
    Planner,
    Proposal,
)
from latentplan.types import Array, Goal, Observation, Part, Plan, Spec

CAPTURED = (
    "MPC.cuda_graph: a captured solve runs as a whole: it cannot keep deadline_ms or use proposals "
    "of a model; leave these out (propose=false), or cuda_graph"
)


class MPC:
    """Policy that plans with a model, a planner and an objective.

    It keeps the state that a planner does not: the goal, the recent observations and actions, and
    the rest of the last plan. Observations need only the keys that the model was trained on. It is
    thread-safe: each call waits for the one in progress, so that a goal set during `act` applies
    from the next `act` on.
    """

    @dataclass(frozen=True)
    class Config:
        """Settings."""

        chunk: int = 1  # actions sent before planning again; at most the planner's horizon
        warm_start: bool = True  # whether the rest of the last plan starts the next search
        deadline_ms: float | None = None  # time limit of `act`, encoding included, ms
        action_rate_limit: tuple[float, ...] = ()  # largest change of each number between steps
        replan_threshold: float | None = None  # replan within a chunk if the error of the predicted
        # latent exceeds this share of the predicted change
        dtype: str = "float32"  # precision of rollouts: float32, tf32 (CUDA), bfloat16 or float16
        cuda_graph: bool = False  # run a solve as one CUDA graph; needs a CUDA device
        propose: bool | str = False  # whether actions proposed by the model itself are candidates;
        # auto: if it proposes any
        proposer: Part = Part("model")  # {run: RUN}: another model whose proposals are candidates

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            check_range("MPC.chunk", self.chunk, 1)
            for each in self.action_rate_limit:
                check_range("MPC.action_rate_limit", each, 1e-6)
            for name, value in (
                ("deadline_ms", self.deadline_ms),
                ("replan_threshold", self.replan_threshold),
            ):
                if value is not None:
                    check_range(f"MPC.{name}", value, 0)
            if self.dtype not in DTYPES:
                known = ", ".join(DTYPES)
                raise ConfigError(f"MPC.dtype: {self.dtype!r} is not one of {known}")
            if self.propose not in (True, False, "auto"):
                raise ConfigError(f"MPC.propose: {self.propose!r} is not one of true, false, auto")
            proposes = self.propose is True or bool(self.proposer.run)
            if self.cuda_graph and (self.deadline_ms is not None or proposes):
                raise ConfigError(CAPTURED)

    @own_torch_settings()
    def __init__(
        self,
        model: Dynamics,
        planner: Planner | None = None,
        *,
        objective: ObjectiveFactory | None = None,
        seed: int = 0,
        config: Config | None = None,
        proposals: Sequence[Proposal] = (),
        proposers: Sequence[Dynamics] = (),
        constraints: Sequence[Constraint] = (),
    ) -> None:
        """Take a model, a planner (by default cem) and an objective (by default goal).

        `proposals` add candidates to every search; `proposers` are models that propose actions for
        the goal. Raises ConfigError if settings do not fit the model, the planner or the
        device.
        """
        if isinstance(model, Spec):
            raise ConfigError(
                f"policy {type(self).__name__}: needs a trained model, found a spec; pass the "
                "policy that latentplan.load returns"
            )
        c = self.config = config or self.Config()
        self.model, self.planner = model, planner or registry.get("planner", "cem")()
        if c.chunk > self.planner.horizon:
            limit = f"[1, horizon={self.planner.horizon}]"
            raise ConfigError(f"MPC.chunk: {c.chunk} is not within {limit}")
        if c.proposer.run and not proposers:
            raise ConfigError(
                f"MPC.proposer: {c.proposer.run!r} is loaded by latentplan.load; give an MPC of "
                "your own the model itself: proposers=[model]"
            )
        proposes = isinstance(model, ActionProposer) if c.propose == "auto" else c.propose
        if proposes and c.cuda_graph:
            raise ConfigError(CAPTURED)
        if proposes and model not in proposers:
            proposers = [model, *proposers]
        self.lock = threading.RLock()
        self.plan: Plan | None = None  # the last one, with its predicted cost
        self._histories = Histories([model, *proposers])
        self._history = self._histories[model]
        self._proposals = [
            (OwnProposal if each is model else ModelProposal)(each, self._histories[each])
            for each in proposers
        ]
        self._planner = ModelPlanner(
            model,
            self.planner,
            objective or registry.get("objective", "goal")(),
            generator=torch.Generator(self._history.device).manual_seed(seed),
            proposals=(*proposals, *self._proposals),
            constraints=tuple(constraints),
            dtype=c.dtype,
            cuda_graph=c.cuda_graph,
            action_rate_limit=c.action_rate_limit,
        )
        self._goal: Goal | None = None
        self._sent = 0  # number of actions of the plan that were sent
        self._last: Tensor | None = None  # (1, A) last action sent, on the CPU
        self._prediction: Prediction | None = None  # latents that the plan should lead to
        self._stopwatch = Stopwatch()

    @exclusive
    @own_torch_settings()
    def goal(
        self,
        observation: Observation | Goal | None = None,
        *,
        text: str = "",
        mask: Array | None = None,
        keypoints: Array | None = None,
    ) -> None:
        """Set the goal, as a `Goal` or as any of its parts.

        An observation needs the model's keys; a text is an instruction or the name of a task, for
        models that propose actions or predict subgoals. The objective defines which parts it uses.
        If there is a deadline, the first goal calls `warm_up`. Raises ConfigError or ShapeError if
        the objective or a model cannot use the goal.
        """
        goal = observation
        if not isinstance(goal, Goal):
            goal = Goal(observation=goal, text=text, mask=mask, keypoints=keypoints)
        made = [each.model.proposal(goal) for each in self._proposals]
        if isinstance(self._planner.objective, GoalChecker):
            self._planner.objective.check(goal, self.model)
        for each, proposal in zip(self._proposals, made, strict=True):
            each.proposal = proposal
        self._histories.instruct(goal.text)
        first, self._goal = self._goal is None, goal
        self.plan = None  # it leads to the previous goal
        if first and self.config.deadline_ms is not None:
            self.warm_up()

    @exclusive
    @own_torch_settings()
    def act(self, observation: Observation) -> Array:
        """Return the next action (A,) float32: finite, inside the bounds, within the rate limit.

        Raises ShapeError if the observation does not fit the model, and PlanningError if no goal is
        set, the model raises, no candidate has a finite cost, or the deadline is too short.
        """
        start, goal = perf_counter(), self._need_goal()
        plan, self.plan = self.plan, None  # an error leaves no plan to continue
        self._histories.observe("MPC.act", observation)
        if plan is None or self._sent == self.config.chunk or self._missed():
            plan = self._replan(goal, observation, plan, start)
        self.plan, action = plan, plan.actions[:, self._sent]
        self._sent += 1
        self._histories.send(action)
        self._last = action.cpu()
        sent: Array = self._last[0].float().numpy().copy()
        self._stopwatch.add((perf_counter() - start) * 1e3)
        return sent

    def _replan(
        self, goal: Goal, observation: Observation, last: Plan | None, start: float
    ) -> Plan:
        c, context = self.config, self._history.context()
        plan = self._planner.plan(
            goal,
            context,
            observation,
            previous=self._last,
            warm_start=carry_over(last, self._sent) if c.warm_start else None,
            deadline_ms=remaining("MPC.deadline_ms", c.deadline_ms, since=start),
        )
        self._sent, self._prediction = 0, None
        if c.replan_threshold is not None and c.chunk > 1:
            self._prediction = self._planner.predict(context, plan)
        return plan

    def _missed(self) -> bool:
        threshold = self.config.replan_threshold
        if threshold is None or self._prediction is None:
            return False
        latent = self._history.context().latents[0, -1]
        return self._prediction.missed(latent, self._sent, threshold)

    @exclusive
    @own_torch_settings()
    def sent(self, action: Array) -> None:
        """Record the action (A,) that was executed, if it differs from the one `act` returned.

        For example, the action that `Robot.send` returns. The next plan starts from it.
        """
        given = torch.as_tensor(np.asarray(action, np.float32))
        shapes.check("MPC.sent.action", given, "A", A=self.model.spec.action.size)
        self._histories.send(given[None])
        self._last = given.clamp(*spaces.bounds(self.model.spec))[None]

    @exclusive
    @own_torch_settings()
    def evaluate(self, observation: Observation, actions: Array) -> Array:
        """Return the predicted cost (N,) of actions (N, A) or (N, H, A) from an observation.

        The episode and the random generator do not change. An observation equal to the last one
        passed to `act` is not counted twice. A candidate whose prediction is NaN costs infinity.
        """
        goal = self._need_goal()
        candidates = torch.as_tensor(np.asarray(actions), dtype=torch.float32)
        candidates = candidates[:, None] if candidates.ndim == 2 else candidates
        shapes.check("MPC.evaluate.actions", candidates, "N H A", A=self.model.spec.action.size)
        context = self._history.context_at("MPC.evaluate", observation)
        cost: Array = self._planner.evaluate(goal, context, observation, candidates).cpu().numpy()
        return cost

    @exclusive
    @own_torch_settings()
    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode, with the last goal unless one is given.

        An int as seed gives the random numbers of a new MPC with that seed; from a SeedSequence or
        Generator, a seed is drawn.
        """
        self._histories.clear()
        self.plan = self._last = None
        if seed is not None:
            if not isinstance(seed, int | np.integer):
                seed = np.random.default_rng(seed).integers(2**63)
            self._planner.generator.manual_seed(int(seed))
        if goal is not None:
            self.goal(goal)

    @exclusive
    @own_torch_settings()
    def warm_up(self) -> None:
        """Plan twice and drop the plans, so that the first `act` is as fast as later ones.

        The first calls of torch choose kernels and allocate memory. Raises PlanningError without a
        goal; does nothing within an episode. `goal` calls it if there is a deadline.
        """
        goal = self._need_goal()
        if not self._history.started:
            self._planner.warm_up(goal, self._histories)

    @property
    def latency(self) -> Latency:
        """The measured latency of `act`; NaN before its first call."""
        return self._stopwatch.latency

    def _need_goal(self) -> Goal:
        if self._goal is None:
            raise PlanningError("no goal is set: call goal(observation) first")
        return self._goal
