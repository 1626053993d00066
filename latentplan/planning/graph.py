"""Capture of a whole solve as one CUDA graph: one launch instead of about 1,000.

The inputs of a solve are the tensors in its context, warm start, action space, objective,
constraints and proposals. A solve is captured once for each set of shapes; later solves copy their
values into the captured inputs and replay the graph. On a CPU the same code runs without a graph,
so that tests without a GPU cover everything but the capture itself.
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

KEPT = 8  # captured solves in the cache; each holds memory on the device
INDIVISIBLE = (
    "MPC.cuda_graph: a captured solve runs as a whole: it cannot keep deadline_ms or use proposals "
    "of a model; leave these out (propose=false), or cuda_graph"
)
WARM_UP = 3  # runs before a capture, in which libraries choose kernels and allocate buffers


def capture(planner: Planner, model: Dynamics) -> Captured:
    """Return the planner with its solves captured; ConfigError unless it is a Solver on CUDA."""
    if not isinstance(planner, Solver):
        name = type(planner).__name__
        raise ConfigError(f"MPC.cuda_graph: needs a planner made of a Solver, found {name}")
    if device_of(model).type != "cuda":
        raise ConfigError(
            f"MPC.cuda_graph: needs a CUDA device, the model is on {device_of(model)}"
        )
    return Captured(planner)


class Captured(Solver):
    """A `protocols.Planner` that replays the captured solves of another.

    Its draws have the same distribution as those of `planner`, but different values. Objects passed
    to `plan` share a captured solve if their types and attributes match apart from the values of
    tensors; functions and torch modules must be the same objects. Weights may change in place but
    must not be replaced.
    """

    def __init__(self, planner: Solver) -> None:
        """Take the planner whose solves are captured."""
        super().__init__(planner.config)
        self.planner = planner
        self._solves: OrderedDict[Hashable, _Solve] = OrderedDict()

    @property
    def rounds(self) -> int:
        """The number of rounds of a complete solve."""
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
        """Return the results of `Solver.solve`, replayed; capture a problem of a new kind first."""
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
    """A captured solve and its input tensors."""

    def __init__(self, planner: Solver, problem: Problem) -> None:
        self._planner, self._problem = planner, _clone(problem)
        self._reads: list[Tensor] = []
        _outline(self._problem, self._reads)
        self._graph: torch.cuda.CUDAGraph | None = None
        device = problem.context.latents.device
        if device.type == "cuda":
            # A number on the CPU would be a constant of the graph, and later values not be read.
            if found := {str(read.device) for read in self._reads if read.device != device}:
                where = ", ".join(sorted(found))
                raise ConfigError(
                    f"MPC.cuda_graph: found tensors on {where} in the objective, a constraint or a "
                    f"proposal, need them on {device}; move them there"
                )
            self._capture()

    def run(self, given: Sequence[Tensor]) -> tuple[Scored, Tensor]:
        """Solve for new input tensors, in the order of `_outline`."""
        for read, new in zip(self._reads, given, strict=True):
            read.copy_(new)
        if self._graph is None:
            _, found, elites = self._planner.solve(self._problem)
        else:
            self._graph.replay()
            found, elites = self._found, self._elites
        # Copied, because the next replay overwrites the outputs of the graph.
        return found.take(torch.zeros_like(found.cost[:, :1], dtype=torch.long)), elites.clone()

    def _capture(self) -> None:
        generator, device = self._problem.generator, self._problem.context.latents.device
        drawn = generator.get_state()
        with torch.cuda.device(device):
            # The stream is given to the capture, too: torch's own is on the device of its first
            # capture, and what runs on another device would not be captured.
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._planner.solve(self._problem)
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            self._graph.register_generator_state(generator)
            with torch.cuda.graph(self._graph, stream=stream):
                _, self._found, self._elites = self._planner.solve(self._problem)
        generator.set_state(drawn)  # as if nothing had been drawn yet


def _outline(value: Any, tensors: list[Tensor]) -> Hashable:
    """Return a key of everything but the tensors' values, and append the tensors to `tensors`."""
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
    """Return a copy with new tensors, which `_outline` lists in the same order."""
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
    """Return the parts of a container, bound method or partial function; None for other values."""
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
    """Return a value of the same type, made of other parts."""
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
    """Return whether a value is used as it is: neither copied nor searched for tensors."""
    kept = (nn.Module, Generator, FunctionType, type)
    return isinstance(value, kept) or not hasattr(value, "__dict__")
