"""Runner of all checks of a kind over one class and its settings."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np

from latentplan import config, contracts, registry
from latentplan.comments import comments
from latentplan.errors import (
    ConfigError,
    ContractError,
    LatentplanError,
    MissingDependency,
    unknown,
)
from latentplan.types import Array, Spec

KINDS = (
    "env",
    "evaluation",
    "model",
    "objective",
    "planner",
    "policy",
    "source",
    "tokenizer",
)  # one module of this package each


class Broken(Exception):
    """A promise is broken; the text is what was found."""


class NotApplicable(Exception):
    """The subject lacks the optional ability that a check tests; the text names it."""


@dataclass(frozen=True)
class Subject:
    """A class under test, with its settings."""

    kind: str
    name: str  # in the registry, or MODULE:CLASS
    make: Any  # the class
    config: Any = None  # object of its Config; None if it has no Config
    spec: Spec | None = None  # spec for which a model is built; None for that of the suite
    data: Path | None = None  # data set that a source reads
    env: Subject | None = None  # env of an evaluation; None for that of the suite

    def build(self, *before: Any) -> Any:
        """Return a new object, built from the arguments `before` and the settings.

        Raises ContractError if the object does not implement the protocol of its kind.
        """
        made = self.make(*before) if self.config is None else self.make(*before, self.config)
        contracts.check_object(self.kind, self.name, made)
        return made


Check: TypeAlias = Callable[[Subject], None]


@dataclass(frozen=True)
class Result:
    """The result of a check."""

    promise: str
    status: str  # ok, FAILED or skipped
    found: str = ""  # reason for a failure or skip


def subject(
    kind: str,
    name: str,
    *,
    overrides: Sequence[str] = (),
    spec: Spec | None = None,
    data: str | Path | None = None,
    env: str | None = None,
) -> Subject:
    """Return the subject of a registered name, a preset or `MODULE:CLASS`.

    A source needs the path of its `data`; `env` is that of an evaluation. Raises UnknownName if
    there is none, ContractError if it does not implement the protocol of its kind, and ConfigError
    if an override is not one of its settings.
    """
    found = _chosen(kind, name, overrides)
    if kind == "source" and data is None:
        raise ConfigError(f"source {name!r}: found no data; name the path of some that it reads")
    world = None if env is None else _chosen("env", env, ())
    return replace(found, spec=spec, data=None if data is None else Path(data), env=world)


def _chosen(kind: str, name: str, overrides: Sequence[str]) -> Subject:
    if kind not in KINDS:
        raise unknown("kind to check", kind, KINDS)
    values: Mapping[str, Any] = {}
    if ":" in name:
        make = registry.load(kind, name)
    else:
        preset = config.resolve(kind, name)
        name, values = preset.base, preset.values
        make = registry.get(kind, name)
    if not hasattr(make, "Config"):
        if overrides:
            raise ContractError(f"{kind} {name!r}: has no Config, found {overrides[0]!r}")
        return Subject(kind, name, make)
    # A preset may also have sections of other kinds.
    known = {kind, *(field.name for field in fields(make.Config))}
    own = {key: value for key, value in values.items() if key in known}
    filled = config.load({kind: make.Config}, preset=own, overrides=overrides)[kind]
    return Subject(kind, name, make, filled)


def checks(kind: str) -> dict[str, Check]:
    """Return the checks of a kind by name, in the order of the file."""
    module = import_module(f"latentplan.conformance.{kind}")
    return {
        name.removeprefix("check_"): function
        for name, function in vars(module).items()
        if name.startswith("check_") and function.__module__ == module.__name__
    }


def run(tested: Subject) -> Iterator[Result]:
    """Run every check of the subject's kind, and yield the results.

    Raises MissingDependency if a package for building the subject is not installed.
    """
    for check in checks(tested.kind).values():
        promise = first_line(check)
        try:
            check(tested)
        except NotApplicable as e:
            yield Result(promise, "skipped", str(e))
        except MissingDependency:
            raise
        except (Broken, LatentplanError) as e:
            yield Result(promise, "FAILED", str(e))
        except Exception as e:  # a bug of the class under test, reported with its line
            yield Result(promise, "FAILED", f"{type(e).__name__}: {e} ({_line(e.__traceback__)})")
        else:
            yield Result(promise, "ok")


def first_line(check: Check) -> str:
    """Return the first line of a check's docstring, without `Check that`."""
    line = (check.__doc__ or check.__name__).splitlines()[0]
    return line.removeprefix("Check that ").removesuffix(".")


def require(kept: bool, found: str) -> None:
    """Raise Broken with the text `found` unless `kept`."""
    if not kept:
        raise Broken(found)


def require_commented_config(subject: Subject) -> None:
    """Raise Broken unless a config survives a round trip, and each field has a comment."""
    schema = subject.make.Config
    values = config.to_values(schema())
    require(config.from_values(schema, values) == schema(), f"{values} is another Config")
    bare = [name for name, comment in comments(schema).items() if not comment]
    require(not bare, f"fields without a comment: {', '.join(bare)}")


def refuses(where: str, error: type[Exception], called: Callable[[], Any]) -> None:
    """Raise Broken unless a call raises an error of the type `error`."""
    try:
        called()
    except error:
        return
    except Exception as e:
        raise Broken(f"{where} raises {type(e).__name__}, need {error.__name__}") from None
    raise Broken(f"{where} is accepted, need {error.__name__}")


def difference(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> str:
    """Return the names of the arrays that differ between two observations; "" if none does."""
    if found.keys() != wanted.keys():
        return f"keys {sorted(found)} and {sorted(wanted)}"
    return ", ".join(key for key in wanted if not np.array_equal(found[key], wanted[key]))


def _line(trace: TracebackType | None) -> str:
    last = traceback.extract_tb(trace)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
