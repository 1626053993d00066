"""Where candidates are drawn and what may be returned: a box, or choices such as picks.

Random numbers are drawn once for all B problems (common random numbers), so that a problem's
candidates do not depend on what else is in the batch.
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
from latentplan.types import Observation, Spec

POINTS = 1024  # of an object at most, evenly spread: a large picture has more pixels than it needs


class Box:
    """Every action between `low` and `high`, each (A,), for each of `problems` problems.

    With `rate` (A,), successive actions differ by no more than that, the first from `previous`
    (B, A) where it is given. Both hold exactly, to the last bit.
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
    ) -> None:
        """Take the bounds; ShapeError where they are not finite, reversed or cannot be kept."""
        shapes.check("Box.low", low, "A")
        shapes.check("Box.high", high, "A", A=low.shape[0])
        if not bool((low <= high).all() & low.isfinite().all() & high.isfinite().all()):
            raise ShapeError(
                f"Box: low {low.tolist()} and high {high.tolist()} must be finite, low <= high"
            )
        self.low, self.high = low, high
        self.problems = problems
        self.rate, self.previous = rate, previous
        if rate is not None:
            shapes.check("Box.rate", rate, "A", A=len(low))
            if not bool((rate > 0).all()):
                raise ShapeError(f"Box.rate: found {rate.tolist()}, need more than 0 for each")
            # A sum may round up by half a unit in the last place of the largest action.
            largest = torch.maximum(low.abs(), high.abs())
            self._step = (rate - 2 * torch.finfo(low.dtype).eps * largest).clamp_min(0)
        if previous is not None:
            shapes.check("Box.previous", previous, "B A", B=problems, A=len(low))
            if not bool(((previous >= low) & (previous <= high)).all()):
                raise ShapeError(
                    f"Box.previous: found {previous.tolist()}, need it within "
                    f"{low.tolist()} and {high.tolist()}"
                )

    def sample(self, candidates: int, horizon: int, *, generator: Generator) -> Tensor:
        """Return uniform actions (B, N, H, A); where a rate limits them, chasing such actions."""
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
                # Between an action of the box and one moved towards it: inside the box again.
                step = step.clamp(last - self._step, last + self._step)
            allowed.append(step)
            last = step
        return torch.stack(allowed, dim=2)


class Choices:
    """Actions whose first C numbers are one of K given rows; the others are in a box.

    The rows are what can be chosen now: the points of an object that can be picked, motion
    primitives. `choices` holds them for each of the B problems (K, C), in action coordinates; K
    may differ. Later steps of a horizon choose among the same rows: where an object will be then
    is not known to the space, so plan few steps and replan.
    """

    def __init__(self, low: Tensor, high: Tensor, *, choices: Sequence[Tensor] | Tensor) -> None:
        """Take bounds and rows; ShapeError where there is no row or one is out of bounds."""
        self._box = Box(low, high, problems=len(choices))
        self.low, self.high = low, high
        columns = min(choices[0].shape[-1], len(low))
        for each in choices:
            shapes.check("Choices.choices", each, "K C", C=columns)
            inside = (each >= low[:columns]) & (each <= high[:columns])
            if len(each) == 0 or not bool(inside.all()):
                raise ShapeError("Choices.choices: need at least one row, all inside the bounds")
        longest = max(len(each) for each in choices)
        # Padded with its own first row, which changes no nearest row.
        padded = [torch.cat([p, p[:1].expand(longest - len(p), columns)]) for p in choices]
        self.choices: Tensor | None = torch.stack(padded).to(low)  # B K C
        self.count = torch.tensor([len(p) for p in choices], device=low.device)  # B
        rows = torch.arange(longest, device=low.device)
        self.valid: Tensor | None = rows < self.count[:, None]  # B K

    def sample(self, candidates: int, horizon: int, *, generator: Generator) -> Tensor:
        """Return (B, N, H, A): choices uniform over the rows, the rest uniform in its box."""
        actions = self._box.sample(candidates, horizon, generator=generator)
        unit = torch.rand((candidates, horizon), generator=generator, device=self.low.device)
        index = (unit * self.count[:, None, None]).long()  # B N H
        return self.choose(index.clamp_max(self.count[:, None, None] - 1), actions)

    def project(self, actions: Tensor) -> Tensor:
        """Return (B, N, H, A) with each choice moved to the nearest row and the rest clamped."""
        return self.choose(self.nearest(actions), self._box.project(actions))

    def nearest(self, actions: Tensor) -> Tensor:
        """Return which row each of the actions (B, N, H, A) is nearest to (B, N, H)."""
        assert self.choices is not None
        chosen = actions[..., : self.choices.shape[-1]].flatten(1, 2)  # b (n h) c
        # The matrix-product form of cdist could take a neighbour for a row itself.
        exact = "donot_use_mm_for_euclid_dist"
        away = torch.cdist(chosen, self.choices, compute_mode=exact)  # b (n h) k
        return away.argmin(-1).view(actions.shape[:3])

    def choose(self, index: Tensor, actions: Tensor) -> Tensor:
        """Return actions (B, N, H, A) with the rows of index (B, N, H) as their first numbers."""
        assert self.choices is not None
        problem = torch.arange(index.shape[0], device=index.device)[:, None, None]
        rest = actions[..., self.choices.shape[-1] :]
        return torch.cat([self.choices[problem, index], rest], dim=-1)


def bounds(spec: Spec, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Return low and high (A,) float32 of a spec's actions."""
    low, high = spec.action.low, spec.action.high
    return (
        torch.tensor(low, dtype=torch.float32, device=device),
        torch.tensor(high, dtype=torch.float32, device=device),
    )


def check_rate_limit(where: str, limit: Sequence[float], spec: Spec) -> None:
    """Raise ConfigError unless there is one limit for each number of an action, or none.

    Actions that point into an image have none.
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
    """Return the actions that are possible at an observation, for one problem.

    Picks on the segmented object if the spec points into an image, as a real camera would give it;
    the whole box if it does not, or if no pixel of the object is in view. With a rate limit, a box
    in which successive actions differ by no more than that, the first from `previous` (1, A).
    """
    low, high = bounds(spec)
    if rate_limit:
        rate = torch.tensor(rate_limit, dtype=torch.float32, device=device)
        return Box(low.to(device), high.to(device), rate=rate, previous=previous)
    if spec.pick is not None:
        mask = segment(observation[spec.pick.image], spec.pick)
        rows, columns = np.nonzero(mask)
        height, width = mask.shape
        x, y = pixel_to_action(rows, columns, height=height, width=width)
        points = torch.from_numpy(np.stack([x, y], axis=-1)).float()  # k 2
        points = points[((points >= low[:2]) & (points <= high[:2])).all(-1)]
        if len(points):
            points = points[:: -(-len(points) // POINTS)]
            return Choices(low.to(device), high.to(device), choices=points[None].to(device))
    return Box(low.to(device), high.to(device))
