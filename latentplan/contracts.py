"""Checks that a class or an object has the members of its kind's protocol, before the first use.

A missing or incompatible method is thereby an error of one line instead of a traceback from the
first call. The behaviour of methods is tested by `conformance/`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Protocol

from latentplan import protocols
from latentplan.errors import ContractError

PROTOCOLS: dict[str, type] = {
    "env": protocols.Env,
    "evaluation": protocols.Evaluation,
    "model": protocols.Learner,
    "objective": protocols.ObjectiveFactory,
    "planner": protocols.Planner,
    "policy": protocols.Policy,
    "source": protocols.Source,
    "tokenizer": protocols.Tokenizer,
}
ARGUMENTS = {  # positional arguments of the class by kind, see protocols.Component
    "env": ("config",),
    "evaluation": ("config",),
    "model": ("spec", "config"),
    "objective": ("config",),
    "planner": ("config",),
    "policy": ("spec", "config"),
    "source": ("path", "config"),
    "tokenizer": ("spec", "config"),
}
BY_NAME = {"source": ("keys",)}  # keyword arguments of the class by kind
SPECIAL = ("__call__", "__len__")  # special methods that a protocol may have
WITHOUT_CONFIG = ("env", "policy")  # kinds whose classes may lack a Config


def check_class(kind: str, name: str, made: Any) -> None:
    """Raise a ContractError that names what to add if the class `made` does not fit its kind.

    Methods of a class that forwards attributes (a wrapper, a `torch.nn.Module`) are checked only on
    objects, by `check_object`. A kind without a protocol is not checked.
    """
    if kind not in PROTOCOLS:
        return
    where = f"{kind} {name!r}"
    if not callable(made):
        raise ContractError(
            f"{where}: is a {type(made).__name__}, need a class (protocols.Component)"
        )
    arguments = ARGUMENTS[kind]
    schema = getattr(made, "Config", None)
    if schema is None:
        if kind not in WITHOUT_CONFIG:
            raise ContractError(
                f"{where}: has no Config (protocols.Component): add a frozen dataclass of that "
                "name to the class"
            )
        arguments = arguments[:-1]
    else:
        _check_config(where, schema)
    if inspect.isabstract(made):
        _missing(where, PROTOCOLS[kind], sorted(made.__abstractmethods__))
    by_name = BY_NAME.get(kind, ())
    if not _accepts(made, len(arguments), by_name):
        called = ", ".join([*arguments, *(f"{name}=..." for name in by_name)])
        raise ContractError(
            f"{where}: cannot be called as {_name(made)}({called}) "
            f"(protocols.Component): found {_name(made)}{_signature(made)}"
        )
    if isinstance(made, type) and not hasattr(made, "__getattr__"):
        _check_methods(where, PROTOCOLS[kind], made, bound=0)


def check_object(kind: str, name: str, made: Any) -> None:
    """Raise a ContractError that names what to add if the object `made` does not fit its kind."""
    if kind in PROTOCOLS:
        # A staged model is not a Learner itself; its networks are.
        staged = kind == "model" and isinstance(made, protocols.Staged)
        protocol = protocols.Staged if staged else PROTOCOLS[kind]
        check_protocol(f"{kind} {name!r}", protocol, made)


def check_protocol(where: str, protocol: type, made: Any) -> None:
    """Raise a ContractError that names what the object `made` lacks of `protocol`."""
    _check_methods(where, protocol, made, bound=1)
    missing = [name for name in _attributes(protocol) if not hasattr(made, name)]
    if missing:
        _missing(where, protocol, missing, kind="attribute")


def _check_config(where: str, schema: Any) -> None:
    if not (isinstance(schema, type) and is_dataclass(schema)):
        raise ContractError(
            f"{where}: Config is not a dataclass (protocols.Component): put "
            "@dataclass(frozen=True) before it"
        )
    if not schema.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ContractError(
            f"{where}: Config is not frozen (protocols.Component): write @dataclass(frozen=True)"
        )
    if not _accepts(schema, 0, ()):
        raise ContractError(
            f"{where}: Config has fields without a default (protocols.Component), found "
            f"Config{_signature(schema)}: give each one"
        )


def _check_methods(where: str, protocol: type, made: Any, *, bound: int) -> None:
    """Check that the methods of a class (`bound` 0) or object (1) exist and accept the arguments.

    Methods of a class have the argument `self`, as those of the protocol have.
    """
    methods = dict(_methods(protocol))
    offered = {name: _method(made, name, bound=bound) for name in methods}
    missing = [name for name in methods if not callable(offered[name])]
    if missing:
        _missing(where, protocol, [f"{name}()" for name in missing], kind="method")
    for name, method in methods.items():
        found = inspect.getattr_static(made, name, None)
        if bound == 0 and isinstance(found, staticmethod | classmethod):
            continue
        parameters = list(inspect.signature(method).parameters.values())
        by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        count = len(parameters) - len(by_name) - bound
        if not _accepts(offered[name], count, by_name):
            called = [p.name for p in parameters[1:] if p.kind is not p.KEYWORD_ONLY]
            called += [f"{name}=..." for name in by_name]
            raise ContractError(
                f"{where}: {name}() must take {name}({', '.join(called)}) "
                f"(protocols.{protocol.__name__}): found {name}"
                f"{_signature(offered[name])}"
            )


def _method(made: Any, name: str, *, bound: int) -> Any:
    """Return a method of a class (`bound` 0) or of an object (1); None if it does not exist."""
    if bound == 0 and name == "__call__":  # getattr would return the constructor
        return next((vars(part)[name] for part in made.__mro__ if name in vars(part)), None)
    return getattr(made, name, None)


def _missing(where: str, protocol: type, names: list[str], *, kind: str = "method") -> None:
    plural, it = ("s", "them") if len(names) > 1 else ("", "it")
    verb = "add" if kind == "method" else "set"
    raise ContractError(
        f"{where}: has no {kind}{plural} {', '.join(names)} (protocols.{protocol.__name__}): "
        f"{verb} {it}"
    )


def _members(protocol: type) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each member of a protocol; None for an annotation alone."""
    for part in reversed(protocol.__mro__):
        if part in (object, Protocol) or part.__name__ == "Generic":
            continue
        yield from ((name, None) for name in vars(part).get("__annotations__", {}))
        yield from ((n, v) for n, v in vars(part).items() if not n.startswith("_") or n in SPECIAL)


def _methods(protocol: type) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in _members(protocol) if inspect.isfunction(value))


def _attributes(protocol: type) -> Iterator[str]:
    return (name for name, value in _members(protocol) if not callable(value))


def _accepts(called: Any, count: int, by_name: Any) -> bool:
    """Return whether `called` accepts `count` positional arguments and the keywords `by_name`."""
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # C code has no signature
        return True
    try:
        signature.bind(*[None] * count, **dict.fromkeys(by_name))
    except TypeError:
        return False
    return True


def _signature(called: Any) -> str:
    parameters = list(inspect.signature(called).parameters.values())
    bare = [p.replace(annotation=p.empty) for p in parameters if p.name != "self"]
    return str(inspect.Signature(bare))


def _name(made: Any) -> str:
    return str(getattr(made, "__name__", type(made).__name__))
