"""What a caller names an env, a policy, a source or a planner by: a name, a class or an object.

In a notebook nothing is installed, so a class or an object stands for itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from importlib.util import find_spec
from typing import Any, Protocol, TypeAlias, runtime_checkable

from latentplan import config, contracts, registry
from latentplan.errors import ConfigError
from latentplan.protocols import Component

# `key=value` with the value in YAML, or a mapping: {"length": 10, "env": {"links": 15}}.
Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]


@runtime_checkable
class Configured(Protocol):
    """An object that keeps the Config it was made of."""

    config: Any


@dataclass(frozen=True)
class NoConfig:
    """The settings of a class that has none."""


@dataclass(frozen=True)
class Choice:
    """A part that a call is composed of."""

    kind: str  # env, policy, ...
    name: str  # in the registry; MODULE:CLASS for a class that has no name there
    make: Any  # the class
    instance: Any = None  # the object that was given, if one was
    values: Mapping[str, Any] = field(default_factory=dict)  # of the preset

    @property
    def config(self) -> type:
        """The class of its settings; an object has its settings already."""
        settable = self.instance is None and isinstance(self.make, Component)
        return self.make.Config if settable else NoConfig

    def build(self, settings: Any, *before: Any) -> Any:
        """Return the object, made of the arguments `before` and the settings.

        Raises ContractError if it lacks what its kind must offer.
        """
        if self.instance is not None:
            return self.instance
        own = () if isinstance(settings, NoConfig) else (settings,)
        made = self.make(*before, *own)
        contracts.check_object(self.kind, self.name, made)
        return made

    def to_values(self, settings: Any) -> dict[str, Any]:
        """Return name and settings as plain values, to tell this choice from another."""
        if self.instance is not None:
            settings = self.instance.config if isinstance(self.instance, Configured) else None
        known = is_dataclass(settings) and not isinstance(settings, type)
        return {"name": self.name, **(config.to_values(settings) if known else {})}

    def importable(self) -> bool:
        """Return whether another process can make it too."""
        if self.instance is not None:
            return False
        module = self.make.__module__
        if module == "__main__" or "<locals>" in self.make.__qualname__:  # as in a notebook
            return False
        try:
            return find_spec(module) is not None
        except (ImportError, ValueError):  # a parent that is missing; a module made by hand
            return False


def choose(kind: str, given: Any) -> Choice:
    """Return what a name, a class or an object stands for.

    A name is a preset, in the registry, or MODULE:CLASS. Raises UnknownName for another, and
    ContractError for a class or an object that lacks what its kind must offer.
    """
    if isinstance(given, str) and ":" in given and given not in registry.names(kind):
        given = registry.load(kind, given)
    if isinstance(given, str):
        preset = config.resolve(kind, given)
        return Choice(kind, preset.base, registry.get(kind, preset.base), values=preset.values)
    if isinstance(given, type):
        contracts.check_class(kind, given.__qualname__, given)
        return Choice(kind, _name(kind, given), given)
    contracts.check_object(kind, type(given).__qualname__, given)
    return Choice(kind, _name(kind, type(given)), type(given), instance=given)


def as_overrides(given: Overrides) -> list[str]:
    """Return overrides as `key=value` strings; ConfigError for a value that YAML cannot hold."""
    if isinstance(given, Mapping):
        return [f"{key}={_yaml(key, value)}" for key, value in _leaves(given)]
    if isinstance(given, str):
        raise ConfigError(f"overrides: found the string {given!r}, need a list of them or a dict")
    return list(given)


def _name(kind: str, made: type) -> str:
    target = f"{made.__module__}:{made.__qualname__}"
    return next((n for n, known in registry.names(kind).items() if known == target), target)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _yaml(key: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"overrides.{key}: found {value!r}, need a number, a string, a bool, None, or a list"
        ) from None
