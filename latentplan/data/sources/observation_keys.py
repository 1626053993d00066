"""The choice of observations, which every source implements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from latentplan.data import array_limits
from latentplan.errors import ConfigError
from latentplan.types import Spec


def chosen(
    there: Iterable[str],
    keys: Sequence[str] | None,
    *,
    left_out: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return the observations to read: `keys`, each once, or all that are `there` without any.

    `left_out` has those that no store can hold, with the reason. Raises ConfigError that lists what
    is there if a key is not, and gives the reason if it is left out.
    """
    reasons = left_out or {}
    usable = [key for key in there if key not in reasons]
    if keys is None:
        return tuple(usable)
    for key in keys:
        if key in reasons:
            raise ConfigError(f"import.keys: {key!r} cannot be read: it {reasons[key]}")
        if key not in usable:
            known = ", ".join(usable) or "none"
            raise ConfigError(f"import.keys: no observation {key!r}; the data set has: {known}")
    if not keys:
        raise ConfigError("import.keys: none is given; leave it out to take all")
    return tuple(dict.fromkeys(keys))


def left_out(reasons: Mapping[str, str]) -> dict[str, str]:
    """Return the observations with a reason, or with a name that a store cannot have."""
    named = {key: why or array_limits.unfit_name(key) for key, why in reasons.items()}
    return {key: why for key, why in named.items() if why}


def notes(keys: Sequence[str] | None, left_out: Mapping[str, str]) -> list[str]:
    """Return a line for each observation that is left out, if all were asked for."""
    if keys is not None:
        return []
    return [f"{key!r} is left out: it {why}" for key, why in left_out.items()]


def restricted(spec: Spec, keys: Sequence[str] | None) -> Spec:
    """Return `spec` with the observations `keys` alone, all without any; errors as `chosen`."""
    kept = chosen(spec.observation, keys)
    return replace(
        spec,
        observation={key: spec.observation[key] for key in kept},
        privileged=tuple(key for key in spec.privileged if key in kept),
        pick=spec.pick if spec.pick and spec.pick.image in kept else None,
    )
