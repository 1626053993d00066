"""Action spaces that candidates are drawn from and projected onto: a box, or choices like picks.

All B problems share the same random numbers (common random numbers), so that the candidates of a
problem do not depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from latentplan import shapes
from latentplan.data.images import pixel_to_action, segment
from latentplan.errors import ConfigError, ShapeError
from latentplan.protocols import ActionSpace
from latentplan.types import Array, Observation, Spec

POINTS = 1024  # most picks on an object, spread evenly over its pixels


class Box:
    """All actions between `low` and `high` (A,), for each of `problems` problems.

    With `rate` (A,), successive actions differ by at most `rate`, and the first action from
    `previous` (B, A) if given. Both limits hold exactly in floating point. `device` is where the
    actions are, by default that of the bounds. The arguments are best given on the CPU: they are
    checked first, which would wait for a GPU, and then moved.
    """

    choices: Tensor | None = None
    valid: Tensor | None = None

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        *,
        problems: int = 1,
        rate: Tensor | None = None,
        previous: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Take the bounds; ShapeError if they are not finite, are reversed or cannot be kept."""
        shapes.check("Box.low", low, "A")
        shapes.check("Box.high", high, "A", A=low.shape[0])
        if not bool((low <= high).all() & low.isfinite().all() & high.isfinite().all()):
            raise ShapeError(
                f"Box: low {low.tolist()} and high {high.tolist()} must be finite, low <= high"
            )
        self.problems = problems
        if rate is not None:
            shapes.check("Box.rate", rate, "A", A=len(low))
            if not bool((rate > 0).all()):
                raise ShapeError(f"Box.rate: found {rate.tolist()}, need more than 0 for each")
            # A sum may round up by half an ulp of the largest action.
            largest = torch.maximum(low.abs(), high.abs())
            step = (rate - 2 * torch.finfo(low.dtype).eps * largest).clamp_min(0)
            self._step = step.to(device)
        if previous is not None:
            shapes.check("Box.previous", previous, "B A", B=problems, A=len(low))
            if not bool(((previous >= low) & (previous <= high)).all()):
                raise ShapeError(
                    f"Box.previous: found {previous.tolist()}, need it within "
                    f"{low.tolist()} and {high.tolist()}"
                )
        self.low, self.high = low.to(device), high.to(device)
        self.rate = None if rate is None else rate.to(device)
        self.previous = None if previous is None else previous.to(device)

    def sample(self, candidates: int, horizon: int, *, generator: Generator) -> Tensor:
        """Return uniform actions (B, N, H, A), projected onto the rate limit if there is one."""
        low, high = self.low, self.high
        unit = torch.rand(
            (candidates, horizon, low.shape[0]),
            generator=generator,
            dtype=low.dtype,
            device=low.device,
        )
        # Clamped, since the sum may round upwards.
        actions = torch.addcmul(low, unit, high - low).clamp(low, high)
        actions = actions.expand(self.problems, -1, -1, -1)
        return actions if self.rate is None else self.project(actions)

    def project(self, actions: Tensor) -> Tensor:
        """Return (B, N, H, A) clamped to the bounds and, step by step, to the rate."""
        actions = actions.clamp(self.low, self.high)
        if self.rate is None:
            return actions
        last = None if self.previous is None else self.previous[:, None]
        allowed = []
        for step in actions.unbind(2):
            if last is not None:
                # `last` and `step` are inside the box, and so is the result between them.
                step = step.clamp(last - self._step, last + self._step)
            allowed.append(step)
            last = step
        return torch.stack(allowed, dim=2)


class Choices:
    """Actions whose first C numbers are one of K given rows and whose other numbers are in a box.

    The rows are the choices that are possible now: pick points on an object, or motion primitives.
    `choices` holds them for each of the B problems (K, C), in action coordinates; K may differ.
    All steps of a horizon choose among the same rows, although the object may move: plan few steps
    and replan. `device` is as for a Box.
    """

    def __init__(
        self,
        low: Tensor,
        high: Tensor,
        *,
        choices: Sequence[Tensor] | Tensor,
        device: torch.device | str | None = None,
    ) -> None:
        """Take bounds and rows; ShapeError if there is no row or one is out of bounds."""
        self._box = Box(low, high, problems=len(choices), device=device)
        self.low, self.high = self._box.low, self._box.high
        columns = min(choices[0].shape[-1], len(low))
        for each in choices:
            shapes.check("Choices.choices", each, "K C", C=columns)
            inside = (each >= low[:columns]) & (each <= high[:columns])
            if len(each) == 0 or not bool(inside.all()):
                raise ShapeError("Choices.choices: need at least one row, all inside the bounds")
        longest = max(len(each) for each in choices)
        # Padded with the first row, which does not change the nearest row of any action.
        padded = [torch.cat([p, p[:1].expand(longest - len(p), columns)]) for p in choices]
        self.choices: Tensor | None = torch.stack(padded).to(self.low)  # B K C
        self.count = torch.tensor([len(p) for p in choices], device=self.low.device)  # B
        rows = torch.arange(longest, device=self.low.device)
        self.valid: Tensor | None = rows < self.count[:, None]  # B K

    def sample(self, candidates: int, horizon: int, *, generator: Generator) -> Tensor:
        """Return actions (B, N, H, A): choices uniform over the rows, the rest in the box."""
        actions = self._box.sample(candidates, horizon, generator=generator)
        unit = torch.rand((candidates, horizon), generator=generator, device=self.low.device)
        index = (unit * self.count[:, None, None]).long()  # B N H
        return self.choose(index.clamp_max(self.count[:, None, None] - 1), actions)

    def project(self, actions: Tensor) -> Tensor:
        """Return actions (B, N, H, A) with choices at their nearest rows and the rest clamped."""
        return self.choose(self.nearest(actions), self._box.project(actions))

    def nearest(self, actions: Tensor) -> Tensor:
        """Return the index (B, N, H) of the row nearest to each of the actions (B, N, H, A)."""
        assert self.choices is not None
        chosen = actions[..., : self.choices.shape[-1]].flatten(1, 2)  # b (n h) c
        # The matrix-product form of cdist rounds too coarsely to tell neighbouring rows apart.
        exact = "donot_use_mm_for_euclid_dist"
        away = torch.cdist(chosen, self.choices, compute_mode=exact)  # b (n h) k
        return away.argmin(-1).view(actions.shape[:3])

    def choose(self, index: Tensor, actions: Tensor) -> Tensor:
        """Return actions (B, N, H, A) whose first numbers are the rows of `index` (B, N, H)."""
        assert self.choices is not None
        problem = torch.arange(index.shape[0], device=index.device)[:, None, None]
        rest = actions[..., self.choices.shape[-1] :]
        return torch.cat([self.choices[problem, index], rest], dim=-1)


def bounds(spec: Spec, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return the lower and upper bounds (A,) float32 of a spec's actions."""
    low, high = spec.action.low, spec.action.high
    return (
        torch.tensor(low, dtype=torch.float32, device=device),
        torch.tensor(high, dtype=torch.float32, device=device),
    )


def action(where: str, values: Array, spec: Spec) -> Tensor:
    """Return an action (A,) as a tensor (1, A) float32; ShapeError that begins with `where`."""
    given = torch.as_tensor(np.asarray(values, np.float32))
    shapes.check(where, given, "A", A=spec.action.size)
    return given[None]


def check_rate_limit(where: str, limit: Sequence[float], spec: Spec) -> None:
    """Raise ConfigError unless `limit` is empty or has a value for each number of an action.

    Actions that are picks in an image cannot have a rate limit.
    """
    size = spec.action.size
    if limit and (len(limit) != size or spec.pick is not None):
        why = "which are picks" if spec.pick is not None else "one rate each"
        raise ConfigError(f"{where}: {len(limit)} rates for actions of {size} numbers, {why}")


def from_observation(
    spec: Spec,
    observation: Observation,
    *,
    device: torch.device | str = "cpu",
    rate_limit: Sequence[float] = (),
    previous: Tensor | None = None,
) -> ActionSpace:
    """Return the action space of one problem at an observation.

    If the spec has picks, these are the pixels of the object, segmented by colour. Without picks,
    or if no pixel of the object is visible, it is the whole box. With a rate limit, it is a box in
    which successive actions differ by at most the limit, the first from `previous` (1, A), given
    on the CPU.
    """
    low, high = bounds(spec)
    if rate_limit:
        rate = torch.tensor(rate_limit, dtype=torch.float32)
        return Box(low, high, rate=rate, previous=previous, device=device)
    if spec.pick is not None:
        mask = segment(observation[spec.pick.image], spec.pick)
        rows, columns = np.nonzero(mask)
        height, width = mask.shape
        x, y = pixel_to_action(rows, columns, height=height, width=width)
        points = torch.from_numpy(np.stack([x, y], axis=-1)).float()  # k 2
        points = points[((points >= low[:2]) & (points <= high[:2])).all(-1)]
        if len(points):
            points = points[:: -(-len(points) // POINTS)]
            return Choices(low, high, choices=points[None], device=device)
    return Box(low, high, device=device)
