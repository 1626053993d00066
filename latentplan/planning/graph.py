"""A whole solve, all its rounds, as one CUDA graph: the host launches once instead of 1,000 times.

What a solve depends on are tensors: the context, the warm start, those in the space, the objective,
the constraints and proposals. A solve is captured once for each set of shapes; from then on new
values are copied to where the graph reads them. On a CPU the same code runs without the graph, so
that everything but the capture itself is tested there.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Generator, Tensor, nn

from latentplan.errors import ConfigError
from latentplan.nn.observations import device_of
from latentplan.planning.problem import Problem, Scored
from latentplan.planning.solver import Solver
from latentplan.protocols import Dynamics, Planner

KEPT = 8  # captured solves, the last used; each holds its memory on the device
WARM_UP = 3  # runs before a capture, in which libraries choose kernels and make their buffers


def capture(planner: Planner, model: Dynamics) -> Captured:
    """Return a planner that plans by captured graphs; ConfigError unless it can, on CUDA."""
    if not isinstance(planner, Solver):
        name = type(planner).__name__
        raise ConfigError(f"MPC.cuda_graph: needs a planner made of a Solver, found {name}")
    if device_of(model).type != "cuda":
        raise ConfigError(
            f"MPC.cuda_graph: needs a CUDA device, the model is on {device_of(model)}"
        )
    return Captured(planner)


class Captured(Solver):
    """A `protocols.Planner` that plans as `planner` does, through a captured graph on CUDA.

    It draws the same kind of random numbers, not the same ones. Objects that are given to `plan`
    are told apart by their type and what they hold; a function or a torch module counts as the
    same only when it is the same object. Weights may change in place, not be replaced.
    """

    def __init__(self, planner: Solver) -> None:
        """Take the planner."""
        super().__init__(planner.config)
        self.planner = planner
        self._solves: OrderedDict[Hashable, _Solve] = OrderedDict()

    @property
    def rounds(self) -> int:
        """How many rounds a whole solve has."""
        return self.planner.rounds

    def first(self, problem: Problem) -> Any:
        """Return the State after the planner's first round."""
        return self.planner.first(problem)

    def next(self, problem: Problem, state: Any, index: int) -> Any:
        """Return the State after the planner's round `index`."""
        return self.planner.next(problem, state, index)

    def solve(
        self, problem: Problem, *, start: float = 0, deadline_ms: float | None = None
    ) -> tuple[int, Scored, Tensor]:
        """Return what `Solver.solve` does, by replaying the captured solve of such a problem."""
        if deadline_ms is not None:
            raise ConfigError("deadline_ms: a captured solve runs as a whole; leave out cuda_graph")
        given: list[Tensor] = []
        key = _outline(problem, given)
        if key not in self._solves:
            self._solves[key] = _Solve(self.planner, problem)
            if len(self._solves) > KEPT:
                self._solves.popitem(last=False)
        self._solves.move_to_end(key)
        return self.rounds, *self._solves[key].run(given)


class _Solve:
    """One captured solve, and the tensors that it reads."""

    def __init__(self, planner: Solver, problem: Problem) -> None:
        self._planner, self._problem = planner, _clone(problem)
        self._reads: list[Tensor] = []
        _outline(self._problem, self._reads)
        self._graph: torch.cuda.CUDAGraph | None = None
        if problem.context.latents.is_cuda:
            self._capture()

    def run(self, given: Sequence[Tensor]) -> tuple[Scored, Tensor]:
        """Solve for the given tensors, in the order of `_outline`."""
        for read, new in zip(self._reads, given, strict=True):
            read.copy_(new)
        if self._graph is None:
            _, found, elites = self._planner.solve(self._problem)
        else:
            self._graph.replay()
            found, elites = self._found, self._elites
        # Copies: the next solve writes where the graph always writes.
        return found.take(torch.zeros_like(found.cost[:, :1], dtype=torch.long)), elites.clone()

    def _capture(self) -> None:
        generator, device = self._problem.generator, self._problem.context.latents.device
        drawn = generator.get_state()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._planner.solve(self._problem)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        with torch.cuda.graph(self._graph):
            _, self._found, self._elites = self._planner.solve(self._problem)
        generator.set_state(drawn)  # as if nothing had been drawn yet


def _outline(value: Any, tensors: list[Tensor]) -> Hashable:
    """Return what stays the same from solve to solve, and append the tensors, which may change."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.shape, value.dtype, value.device
    parts = _parts(value)
    if parts is not None:
        return type(value), *(_outline(each, tensors) for each in parts)
    if _opaque(value):
        return value if isinstance(value, Hashable) else id(value)
    fields = sorted(vars(value).items())
    return type(value), *((name, _outline(each, tensors)) for name, each in fields)


def _clone(value: Any) -> Any:
    """Return the same with tensors of its own, which `_outline` finds in the same order."""
    if isinstance(value, Tensor):
        return value.clone()
    parts = _parts(value)
    if parts is not None:
        return _rebuilt(value, [_clone(each) for each in parts])
    if _opaque(value):
        return value
    twin = copy.copy(value)
    twin.__dict__.update({name: _clone(each) for name, each in vars(value).items()})
    return twin


def _parts(value: Any) -> tuple[Any, ...] | None:
    """Return what a container, a bound method or a partial function is made of; None for others."""
    if isinstance(value, tuple | list):
        return tuple(value)
    if isinstance(value, dict):
        return *value.keys(), *value.values()
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    return None


def _rebuilt(value: Any, parts: list[Any]) -> Any:
    """Return a value like this one, of other parts."""
    if isinstance(value, dict):
        return dict(zip(value, parts[len(value) :], strict=True))
    if isinstance(value, MethodType):
        return MethodType(*parts)
    if isinstance(value, partial):
        return partial(parts[0], *parts[1], **parts[2])
    if hasattr(value, "_fields"):  # a named tuple
        return type(value)(*parts)
    return type(value)(parts)


def _opaque(value: Any) -> bool:
    """Whether a value is used as it is, never copied or looked into."""
    kept = (nn.Module, Generator, FunctionType, type)
    return isinstance(value, kept) or not hasattr(value, "__dict__")
