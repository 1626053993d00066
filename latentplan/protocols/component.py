"""What every registered class has in common: a Config, and the arguments that it is built with."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Component(Protocol):
    """A registered class, or a function with a `Config`.

    It is called with its Config as the last argument: an env, planner or objective as
    `cls(config)`, a model, tokenizer or policy as `cls(spec, config)` with the Spec of the data or
    env, and a source as `cls(path, config, keys=keys)`. The Spec of an env is known only after it
    is built.
    """

    Config: type[Any]  # a frozen dataclass; each field has a default and a comment, ranges checked


@runtime_checkable
class Configured(Protocol):
    """A network with the config that it was built from, which a checkpoint saves."""

    config: Any  # a dataclass
