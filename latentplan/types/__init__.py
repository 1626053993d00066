"""The values that components exchange: frozen dataclasses with checks and JSON, nothing else.

`specs` holds shapes and bounds, `episodes` data and batches, `goals` what a planner starts from,
aims at and returns, and `training` what a model declares. Axes, here and everywhere: B batch,
T past, H horizon, N candidates, D latent, A action, C h w image. torch is imported for type
checkers only, so that commands start fast.
"""

from latentplan.types.arrays import Array, Observation, Tensors
from latentplan.types.episodes import Batch, Episode, Label, Moments, Step, Tokens
from latentplan.types.goals import Context, Goal, Plan
from latentplan.types.progress import OnProgress, Progress
from latentplan.types.specs import (
    AXES,
    DTYPES,
    ActionSpec,
    ArraySpec,
    Convention,
    PickSpec,
    PlanarSpec,
    Spec,
)
from latentplan.types.training import Derived, Loss, Part, Parts, Stage, Training

__all__ = [
    "AXES",
    "DTYPES",
    "ActionSpec",
    "Array",
    "ArraySpec",
    "Batch",
    "Context",
    "Convention",
    "Derived",
    "Episode",
    "Goal",
    "Label",
    "Loss",
    "Moments",
    "Observation",
    "OnProgress",
    "Part",
    "Parts",
    "PickSpec",
    "Plan",
    "PlanarSpec",
    "Progress",
    "Spec",
    "Stage",
    "Step",
    "Tensors",
    "Tokens",
    "Training",
]
