"""The header of a checkpoint: what rebuilds a network, checked whole before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentplan import config, schema
from latentplan.errors import CheckpointError, StoreError
from latentplan.schema import AnyFloat
from latentplan.types import Spec

VALUES = 5000  # of a config


@dataclass(frozen=True)
class NetworkHeader:
    """What rebuilds a network: the whole file's, or that of a part inside it."""

    kind: str  # registry kind: model, tokenizer, objective, policy; part for others
    name: str  # registry name, or module:qualname of a class that is not registered
    config: Mapping[str, Any]  # of the class, as plain values
    spec: Spec

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "spec": self.spec.to_json()}


@dataclass(frozen=True)
class Header(NetworkHeader):
    """What a checkpoint holds beside its weights."""

    step: int  # training steps done
    metrics: Mapping[str, float]  # held-out figures at that step
    parts: Mapping[str, NetworkHeader] = field(default_factory=dict)  # by prefix

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `parse` is the inverse."""
        values = {**super().to_json(), "metrics": dict(self.metrics)}
        parts = {prefix: part.to_json() for prefix, part in values.pop("parts").items()}
        return values | {"parts": parts} if parts else values


def of(model: Any, *, kind: str, name: str) -> NetworkHeader:
    """Return what rebuilds a network."""
    return NetworkHeader(kind, name, config.to_values(model.config), model.spec)


@dataclass(frozen=True)
class _NetworkHeader:
    """The values of a `NetworkHeader` in JSON; the spec has checks of its own."""

    kind: str
    name: str
    config: dict[str, Any]
    spec: dict[str, Any]


@dataclass(frozen=True)
class _Header(_NetworkHeader):
    step: int
    metrics: dict[str, AnyFloat]  # NaN where there is no figure
    parts: dict[str, _NetworkHeader] = field(default_factory=dict)


def parse(values: Any, path: Path | str) -> Header:
    """Return the header of JSON values; CheckpointError names the first field that is wrong."""
    read = schema.from_values(_Header, values, where=f"{path}: header", error=CheckpointError)
    if read.step < 0:
        raise CheckpointError(f"{path}: header.step: found {read.step}, need 0 or more")
    whole = _part(read, f"{path}: header")
    parts = {key: _part(part, f"{path}: header.parts.{key}") for key, part in read.parts.items()}
    return Header(**vars(whole), step=read.step, metrics=read.metrics, parts=parts)


def _part(read: _NetworkHeader, where: str) -> NetworkHeader:
    try:
        spec = Spec.from_json(read.spec)
    except StoreError as e:
        raise CheckpointError(f"{where}.{e}") from None
    count = _count(read.config)
    if count > VALUES:
        raise CheckpointError(f"{where}.config: found {count} values, allowed are {VALUES}")
    if read.kind == "model":
        _check_plannable(spec, where)
    return NetworkHeader(read.kind, read.name, read.config, spec)


def _count(values: Any) -> int:
    inside = values.values() if isinstance(values, dict) else values
    return 1 + sum(map(_count, inside)) if isinstance(values, dict | list) else 1


def _check_plannable(spec: Spec, where: str) -> None:
    """Raise CheckpointError if actions point into an image that the spec does not have."""
    if spec.pick is None:
        return
    array = spec.observation.get(spec.pick.image)
    if array is None:
        known = ", ".join(spec.observation) or "none"
        raise CheckpointError(f"{where}.spec.pick.image: found {spec.pick.image!r}, known: {known}")
    if array.dtype != "uint8" or len(array.shape) != 3 or array.shape[-1] != 3:
        found = f"{array.dtype} {array.shape}"
        raise CheckpointError(f"{where}.spec.pick.image: found {found}, need uint8 (h, w, 3)")
    if spec.action.size < 2:
        raise CheckpointError(f"{where}.spec.pick: found an action of 1 number, need 2 that point")
