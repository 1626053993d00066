"""Where candidates are drawn and what may be returned: a box, or picks on an object.

Random numbers are drawn once for all B problems (common random numbers), so that a problem's
candidates do not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from latentplan import shapes
from latentplan.data.pictures import pixel_to_action, segment
from latentplan.errors import ShapeError
from latentplan.protocols import ActionSpace
from latentplan.types import Observation, Spec

POINTS = 1024  # of an object at most, evenly spread: a large picture has more pixels than it needs


class Box:
    """Every action between `low` and `high`, each (A,), for each of `problems` problems."""

    def __init__(self, low: Tensor, high: Tensor, *, problems: int = 1) -> None:
        """Take the bounds; ShapeError where they are not finite or reversed."""
        shapes.check("Box.low", low, "A")
        shapes.check("Box.high", high, "A", A=low.shape[0])
        if not bool((low <= high).all() & low.isfinite().all() & high.isfinite().all()):
            raise ShapeError(
                f"Box: low {low.tolist()} and high {high.tolist()} must be finite, low <= high"
            )
        self.low, self.high = low, high
        self.problems = problems

    def sample(self, candidates: int, horizon: int, *, generator: Generator) -> Tensor:
        """Return uniform actions (B, N, H, A)."""
        low, high = self.low, self.high
        unit = torch.rand(
            (candidates, horizon, low.shape[0]),
            generator=generator,
            dtype=low.dtype,
            device=low.device,
        )
        actions = (low + unit * (high - low)).clamp(low, high)  # clamp: the sum may round upwards
        return actions.expand(self.problems, -1, -1, -1)

    def project(self, actions: Tensor) -> Tensor:
        """Return (B, N, H, A) clamped to the bounds."""
        return actions.clamp(self.low, self.high)


class Picks:
    """Actions whose first two numbers are one of the object's points; the others are in a box.

    `points` holds for each of the B problems the points (K, 2) that can be picked now, in action
    coordinates; K may differ. Later steps of a horizon pick among the same points: where the
    object will be then is not known to the space, so plan few steps and replan.
    """

    def __init__(self, low: Tensor, high: Tensor, *, points: Sequence[Tensor] | Tensor) -> None:
        """Take bounds and points; ShapeError where there is no point or one is out of bounds."""
        self._box = Box(low, high, problems=len(points))
        self.low, self.high = low, high
        for each in points:
            shapes.check("Picks.points", each, "K xy", xy=2)
            if len(each) == 0 or not bool(((each >= low[:2]) & (each <= high[:2])).all()):
                raise ShapeError("Picks.points: need at least one point, all inside the bounds")
        longest = max(len(each) for each in points)
        # Padded with its own first point, which changes no nearest point.
        padded = [torch.cat([p, p[:1].expand(longest - len(p), 2)]) for p in points]
        self._points = torch.stack(padded).to(low)  # B K 2
        self._count = torch.tensor([len(p) for p in points], device=low.device)  # B

    def sample(self, candidates: int, horizon: int, *, generator: Generator) -> Tensor:
        """Return (B, N, H, A): picks uniform over the points, the rest uniform in its box."""
        actions = self._box.sample(candidates, horizon, generator=generator)
        unit = torch.rand((candidates, horizon), generator=generator, device=self.low.device)
        index = (unit * self._count[:, None, None]).long()  # B N H
        return self._pick(index.clamp_max(self._count[:, None, None] - 1), actions)

    def project(self, actions: Tensor) -> Tensor:
        """Return (B, N, H, A) with each pick moved to the nearest point and the rest clamped."""
        picks = actions[..., :2].flatten(1, 2)  # b (n h) 2
        # The matrix-product form of cdist could take a neighbour for a point itself.
        exact = "donot_use_mm_for_euclid_dist"
        away = torch.cdist(picks, self._points, compute_mode=exact)  # b (n h) k
        return self._pick(away.argmin(-1).view(actions.shape[:3]), self._box.project(actions))

    def _pick(self, index: Tensor, actions: Tensor) -> Tensor:
        problem = torch.arange(index.shape[0], device=index.device)[:, None, None]
        return torch.cat([self._points[problem, index], actions[..., 2:]], dim=-1)


def from_observation(
    spec: Spec, observation: Observation, *, device: torch.device | str = "cpu"
) -> ActionSpace:
    """Return the actions that make sense for what is seen now, for one problem.

    Picks on the segmented object where the spec points into a picture, as a real camera would
    give it; the whole box where it does not or where no pixel of the object is in view.
    """
    low = torch.tensor(spec.action.low, dtype=torch.float32)
    high = torch.tensor(spec.action.high, dtype=torch.float32)
    if spec.pick is not None:
        mask = segment(observation[spec.pick.image], spec.pick)
        rows, columns = np.nonzero(mask)
        height, width = mask.shape
        x, y = pixel_to_action(rows, columns, height=height, width=width)
        points = torch.from_numpy(np.stack([x, y], axis=-1)).float()  # k 2
        points = points[((points >= low[:2]) & (points <= high[:2])).all(-1)]
        if len(points):
            points = points[:: -(-len(points) // POINTS)]
            return Picks(low.to(device), high.to(device), points=points[None].to(device))
    return Box(low.to(device), high.to(device))
