"""Small models of every registered name, and of settings that change which layers run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from trainings import small

from latentplan import registry
from latentplan.conformance.suite import subject
from latentplan.models.ensemble import Ensemble
from latentplan.protocols import PrivilegedModel
from latentplan.types import ActionSpec, ArraySpec, PickSpec, PlanarSpec, Spec

SIDE = 32  # pixels of an image
POINTS = 5  # of models that read the simulator's keypoints
PICK = PickSpec("rgb", (150, 150, 150))
BOX = Spec(
    {"rgb": ArraySpec((SIDE, SIDE, 3), "uint8")},
    ActionSpec((-1.0,) * 4, (1.0,) * 4),
    planar=PlanarSpec("rgb", ((0, 1), (2, 3))),
    tasks=("push", "pull"),
)

SETTINGS = {
    "videoworld": [
        *("model.dynamics.width=16", "model.dynamics.layers=1", "model.inverse.frame_encoder=8"),
        *("model.transformer.width=16", "model.transformer.frame_encoder=8"),
    ],
    "calibrated": [
        *("model.dynamics.hidden=[8]", "model.dynamics.members=2", "model.inverse.hidden=[8]"),
    ],
}
VARIANTS = {  # of the registered models
    "cfm, four views": ("cfm", ["model.views=4"]),
    "cfm_paper": ("cfm", ["model.dynamics=locally_linear", "model.negatives=current"]),
    "jepa, vicreg": ("jepa", ["model.against=vicreg"]),
    "keypoints, line": ("keypoints", ["model.orders=line"]),
    "videoworld, frames": ("videoworld", ["model.inverse.reads=frames"]),
    "videoworld, frame prior": (
        "videoworld",
        [
            *("model.frame_prior.channels=8", "model.frame_prior.blocks=1"),
            *("model.frame_prior.prior.width=16", "model.frame_prior.prior.layers=1"),
        ],
    ),
    "videoworld, sentences": (
        "videoworld",
        ["model.language=true", "model.transformer.tasks=[push,pull]"],
    ),
}
NAMES = [*sorted(registry.names("model")), *VARIANTS, "ensemble"]


def having(method: str) -> list[str]:
    """Return the names of the models with a method."""
    made = {name: registry.get("model", VARIANTS.get(name, (name,))[0]) for name in NAMES[:-1]}
    found = [name for name, make in {**made, "ensemble": Ensemble}.items() if hasattr(make, method)]
    return found


def box(learner) -> Spec:
    """Return BOX, with the simulator's keypoints if the learner declares that it reads them."""
    if not isinstance(learner, PrivilegedModel):
        return BOX
    seen = {**BOX.observation, "keypoints": ArraySpec((POINTS, 2), "float32", "m")}
    return replace(BOX, observation=seen, privileged=("keypoints",))


@cache
def model(name: str, *, picks: bool = False):
    """Return a small frozen model, the same each time."""
    if name == "ensemble":
        return Ensemble([model.__wrapped__("cfm", picks=picks) for _ in range(2)])
    registered, settings = VARIANTS.get(name, (name, []))
    chosen = [*small(registered), *SETTINGS.get(registered, ()), *settings]
    spec = box(registry.get("model", registered))
    spec = replace(spec, pick=PICK) if picks else spec
    return subject("model", registered, overrides=chosen).build(spec).eval().requires_grad_(False)
