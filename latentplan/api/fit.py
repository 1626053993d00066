"""Whether a model can be used with an env or an arm: their specs, compared."""

from __future__ import annotations

from dataclasses import asdict

from latentplan.errors import CheckpointError
from latentplan.types import Spec


def check_fit(where: str, model: Spec, env: Spec) -> None:
    """Raise CheckpointError, with all differences, if a model cannot be used in an env."""
    wrong = [*_observations(model, env)]
    for bound in ("low", "high"):
        have, want = getattr(env.action, bound), getattr(model.action, bound)
        if have != want:
            wrong.append(f"action.{bound} is {have}, need {want}")
    have, want = (
        {} if spec.action.convention is None else asdict(spec.action.convention)
        for spec in (env, model)
    )
    for field in sorted(have.keys() | want.keys()):
        if have.get(field) != want.get(field):
            wrong.append(
                f"action.convention.{field} is {have.get(field)!r}, need {want.get(field)!r}"
            )
    if model.dt != env.dt:
        wrong.append(f"dt is {env.dt} s, need {model.dt} s")
    if wrong:
        raise CheckpointError(
            f"{where}: does not fit env {env.env!r}: {'; '.join(wrong)}; "
            "use the env and settings that it was trained with"
        )


def _observations(model: Spec, env: Spec) -> list[str]:
    """Return what is wrong with the env's observations, for a model."""
    wrong = []
    for key, array in model.observation.items():
        need, given = (array.shape, array.dtype), env.observation.get(key)
        if given is None:
            wrong.append(f"observation {key!r} is missing")
        elif key in env.privileged and key not in model.privileged:
            wrong.append(f"observation {key!r} is privileged there")
        elif (given.shape, given.dtype) != need:
            wrong.append(
                f"observation {key!r} is {given.dtype} {given.shape}, need {need[1]} {need[0]}"
            )
    return wrong
