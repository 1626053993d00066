"""The fields of a Config: type, default, range and meaning, for people to read.

The meaning of a field is the comment after it in the source, its range what `__post_init__` checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as fields_of
from importlib import import_module
from typing import Any, get_args, get_type_hints

from latentplan import config, registry
from latentplan.comments import comments
from latentplan.errors import ConfigError, ranges, unknown
from latentplan.types import Part

# Sections of settings that no registered name has, with the class of each.
SECTIONS = {
    "collect": "latentplan.exploration.recorder:CollectConfig",
    "training": "latentplan.training.loop:Training",
    "mpc": "latentplan.planning.mpc:MPC.Config",
}


@dataclass(frozen=True)
class Field:
    """One field of a Config."""

    name: str  # with those of the fields that it is nested in: noise.std
    type: str  # as in the source
    value: Any  # of the preset, else the default
    default: Any
    range: str  # "1 to 64", "at least 0", or ""
    meaning: str


def describe(kind: str, name: str = "") -> tuple[list[Field], dict[str, Any]]:
    """Return the fields of a registered name or preset, and what the preset sets elsewhere.

    `kind` may be one of `SECTIONS`, which have no names. Raises UnknownName for another.
    """
    if kind in SECTIONS:
        if name:
            raise ConfigError(f"{kind}: found the name {name!r}; it is a section and has no names")
        module, _, attribute = SECTIONS[kind].partition(":")
        schema: Any = import_module(module)
        for part in attribute.split("."):
            schema = getattr(schema, part)
        return list(fields(schema, schema())), {}
    if kind not in registry.BUILT_IN:
        raise unknown("kind", kind, [*registry.BUILT_IN, *SECTIONS])
    if not name:
        raise ConfigError(f"{kind}: which one? known: {', '.join(sorted(registry.names(kind)))}")
    values: Mapping[str, Any] = {}
    if ":" in name:
        make = registry.load(kind, name)
    else:
        preset = config.resolve(kind, name)
        make, values = registry.get(kind, preset.base), preset.values
    schema = getattr(make, "Config", None)
    if schema is None:
        raise ConfigError(f"{kind} {name!r}: has no settings")
    own = {field.name for field in fields_of(schema)}
    mine = {key: value for key, value in values.items() if key in own} | values.get(kind, {})
    others = {key: value for key, value in values.items() if key not in own and key != kind}
    return list(fields(schema, config.from_values(schema, mine))), others


def fields(schema: type, filled: Any, prefix: str = "") -> Iterator[Field]:
    """Yield the fields of a dataclass, those of nested ones after the field that holds them."""
    default, meanings, hints = schema(), comments(schema), get_type_hints(schema)
    with ranges() as checked:
        post_init = getattr(filled, "__post_init__", None)
        if post_init is not None:
            post_init()
    for field in fields_of(schema):
        value, name = getattr(filled, field.name), prefix + field.name
        bounds = _range(*checked[field.name]) if field.name in checked else ""
        nested = is_dataclass(value) and not isinstance(value, Part)
        yield Field(
            name=name,
            type=_type(hints[field.name]),
            value="" if nested else _part(value),
            default="" if nested else _part(getattr(default, field.name)),
            range=bounds,
            meaning=meanings.get(field.name, ""),
        )
        if isinstance(value, Part) and value.name:
            value = value.config or registry.get(value.kind, value.name).Config()
        if is_dataclass(value) and not isinstance(value, Part):
            yield from fields(type(value), value, f"{name}.")


def _part(value: Any) -> Any:
    """Return a Part as `{run: RUN}` or `{name: NAME}`, any other value as it is."""
    if not isinstance(value, Part):
        return value
    return f"{{run: {value.run}}}" if value.run else f"{{name: {value.name}}}"


def _type(hint: Any) -> str:
    if isinstance(hint, type) and not get_args(hint):
        return hint.__qualname__
    return str(hint).replace("typing.", "").replace("latentplan.", "")


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}" if high else ""
