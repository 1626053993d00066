"""Model predictive control: encode the observation, plan, send the first actions, replan."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from latentplan import registry
from latentplan.errors import ConfigError
from latentplan.nn.torch_settings import own_torch_settings
from latentplan.planning import graph, model_proposal, spaces
from latentplan.planning.exclusive import exclusive
from latentplan.planning.execution import Execution
from latentplan.planning.history import Histories
from latentplan.planning.latency import Latency, Stopwatch
from latentplan.planning.model_planner import ModelPlanner
from latentplan.planning.receding_horizon import RecedingHorizonConfig
from latentplan.planning.roadmap import Guide
from latentplan.protocols import Constraint, Dynamics, ObjectiveFactory, Planner, Proposal
from latentplan.types import Array, Context, Goal, Observation, Plan


class MPC:
    """Policy that plans with a model, a planner and an objective.

    It keeps the goal, the recent observations and actions, and the rest of the last plan, which a
    planner does not. Observations need only the keys that the model was trained on. It is
    thread-safe: a call waits for the one in progress; a goal set during `act` applies to the next.
    """

    @dataclass(frozen=True)
    class Config(RecedingHorizonConfig):
        """Settings."""

        warm_start: bool = True  # whether the rest of the last plan starts the next search
        cuda_graph: bool = False  # run a solve as one CUDA graph; needs a CUDA device
        propose: bool | str = False  # add actions that the model proposes; auto: if it proposes any

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            super().__post_init__()
            if self.propose not in (True, False, "auto"):
                raise ConfigError(f"MPC.propose: {self.propose!r} is not one of true, false, auto")
            proposes = self.propose is True or bool(self.proposer.run)
            if self.cuda_graph and (self.deadline_ms is not None or proposes):
                raise ConfigError(graph.INDIVISIBLE)

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
        the goal. Raises ConfigError if settings do not fit the model, the planner or the device.
        """
        c = self.config = config or self.Config()
        self.model, self.planner = model, planner or registry.get("planner", "cem")()
        c.check(type(self).__name__, model=model, planner=self.planner, proposers=proposers)
        proposers = model_proposal.proposers(model, proposers, own=c.propose)
        self._histories = Histories([model, *proposers])
        self.privileged = self._histories.privileged
        self._planner = ModelPlanner(
            model,
            self.planner,
            objective or registry.get("objective", "goal")(),
            seed=seed,
            proposals=(*proposals, *model_proposal.of_models(proposers, self._histories, model)),
            constraints=constraints,
            dtype=c.dtype,
            cuda_graph=c.cuda_graph,
            action_rate_limit=c.action_rate_limit,
        )
        self._guide = Guide(model, c.roadmap) if c.roadmap.store else None
        self.lock = threading.RLock()
        self._execution: Execution | None = None  # of the last plan
        self._last: Tensor | None = None  # (1, A) last action sent, on the CPU
        self._stopwatch = Stopwatch()

    @exclusive
    def goal(
        self,
        observation: Observation | Goal | None = None,
        *,
        text: str = "",
        mask: Array | None = None,
        keypoints: Array | None = None,
    ) -> None:
        """Set the goal, as a `Goal` or as any of its parts.

        An observation needs the model's keys; a text is an instruction or the name of a task. The
        objective defines which parts it uses. If there is a deadline, the first goal calls
        `warm_up`. Raises ConfigError or ShapeError if the objective or a model cannot use the goal.
        """
        goal = Goal.of(observation, text=text, mask=mask, keypoints=keypoints)
        first = self._planner.goal is None
        self._planner.aim(goal)
        if self._guide is not None:
            self._guide.aim(goal)
        self._histories.instruct(goal.text)
        self._execution = None  # its plan leads to the previous goal
        if first and self.config.deadline_ms is not None:
            self.warm_up()

    @exclusive
    def act(self, observation: Observation) -> Array:
        """Return the next action (A,) float32: finite, inside the bounds, within the rate limit.

        Raises ShapeError if the observation does not fit the model, and PlanningError if no goal is
        set, the model raises, no candidate has a finite cost, or the deadline is too short.
        """
        self._stopwatch.start()
        self._planner.need_goal()
        execution, self._execution = self._execution, None  # an error leaves none to continue
        self._histories.observe("MPC.act", observation)
        context = self._histories[self.model].context()
        subgoal = None if self._guide is None else self._guide.follow(context.latents[0, -1])
        if subgoal is not None:
            self._planner.aim(subgoal)
            execution = None
        if execution is None or execution.done(context):
            execution = self._plan(context, observation, execution)
        self._execution, action = execution, execution.next()
        self._histories.send(action)
        self._last = action.cpu()
        sent: Array = self._last[0].float().numpy().copy()
        self._stopwatch.stop()
        return sent

    def _plan(self, context: Context, seen: Observation, last: Execution | None) -> Execution:
        c = self.config
        plan = self._planner.plan(
            context,
            seen,
            previous=self._last,
            warm_start=last.rest() if last is not None and c.warm_start else None,
            deadline_ms=self._stopwatch.remaining("MPC.deadline_ms", c.deadline_ms),
        )
        if c.replan_threshold is None or c.chunk == 1:
            return Execution(plan, c.chunk)
        predicted = self._planner.predict(context, plan, threshold=c.replan_threshold)
        return Execution(plan, c.chunk, predicted)

    @property
    def plan(self) -> Plan | None:
        """The last plan, with its predicted cost; None after a new goal, `reset` or an error."""
        return None if self._execution is None else self._execution.plan

    @exclusive
    def sent(self, action: Array) -> None:
        """Record the action (A,) that was executed, if it differs from the one `act` returned.

        For example, the action that `Robot.send` returns. The next plan starts from it.
        """
        given = spaces.action("MPC.sent.action", action, self.model.spec)
        self._histories.send(given)
        self._last = given.clamp(*spaces.bounds(self.model.spec))

    @exclusive
    def evaluate(self, observation: Observation, actions: Array) -> Array:
        """Return the predicted cost (N,) of actions (N, A) or (N, H, A) from an observation.

        The episode and the random generator do not change. An observation equal to the last one
        passed to `act` is not counted twice. A candidate whose prediction is NaN costs infinity.
        """
        context = self._histories[self.model].context_at("MPC.evaluate", observation)
        return self._planner.evaluate(context, observation, actions)

    @exclusive
    def reset(self, goal: Goal | None = None, *, seed: Any = None) -> None:
        """Start an episode, with the last goal unless one is given.

        An int as seed gives the random numbers of a new MPC with that seed; from a SeedSequence or
        Generator, a seed is drawn.
        """
        self._histories.clear()
        self._execution = self._last = None
        if self._guide is not None:
            self._guide.restart()
        if seed is not None:
            self._planner.seed(seed)
        if goal is not None:
            self.goal(goal)

    @exclusive
    def warm_up(self) -> None:
        """Plan twice and drop the plans, so that the first `act` is as fast as later ones.

        The first calls of torch choose kernels and allocate memory. Raises PlanningError without a
        goal; does nothing within an episode. `goal` calls it if there is a deadline.
        """
        self._planner.warm_up(self._histories)

    @property
    def latency(self) -> Latency:
        """The measured latency of `act`; NaN before its first call."""
        return self._stopwatch.latency
