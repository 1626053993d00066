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


def storable(
    reasons: Mapping[str, str], keys: Sequence[str] | None
) -> tuple[tuple[str, ...], list[str]]:
    """Return the observations to read, as `chosen`, and without `keys` a note on each left out.

    `reasons` are those for which a store cannot hold an observation, empty if it can; a name that
    a store cannot have is another.
    """
    named = {key: why or array_limits.unfit_name(key) for key, why in reasons.items()}
    left_out = {key: why for key, why in named.items() if why}
    notes = [f"{key!r} is left out: it {why}" for key, why in left_out.items()]
    return chosen(reasons, keys, left_out=left_out), notes if keys is None else []


def restricted(spec: Spec, keys: Sequence[str] | None) -> Spec:
    """Return `spec` with the observations `keys` alone, all without any; errors as `chosen`.

    What it says of observations that it does not have is left out.
    """
    kept = chosen(spec.observation, keys)
    return replace(
        spec,
        observation={key: spec.observation[key] for key in kept},
        privileged=tuple(key for key in spec.privileged if key in kept),
        pick=spec.pick if spec.pick and spec.pick.image in kept else None,
        planar=spec.planar if spec.planar and spec.planar.image in kept else None,
    )
