"""Checkpoints: one safetensors file with a network's weights and everything that rebuilds it.

The header carries the registry kind and name, the config and spec, the step and the held-out
figures as JSON, so that a file is loaded by itself, and nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from latentplan import budget, config, foreign, registry
from latentplan.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    LatentplanError,
    MissingDependency,
)
from latentplan.files import replacing
from latentplan.protocols import Upgradable
from latentplan.training import header as headers
from latentplan.training import weights
from latentplan.training.allocations import Allocations
from latentplan.training.header import Header
from latentplan.types import Part, Spec

FORMAT = "latentplan-checkpoint-2"
BEFORE = "latentplan-checkpoint-1"  # had models alone, under `model`
SHIPPED = Path(__file__).parents[1] / "pretrained"  # package data: <name>/best.safetensors


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with what it was made from."""

    model: Any  # a protocols.Learner or a model of several, nn.Module, in eval mode
    name: str  # registry name, or module:qualname of a class that is not registered
    spec: Spec
    config: Any  # the network's Config
    step: int  # training steps done
    metrics: Mapping[str, float]  # held-out figures at that step
    kind: str = "model"  # registry kind: model, tokenizer, objective, policy; part for others


def save(
    path: Path | str,
    model: Any,
    *,
    name: str,
    step: int,
    metrics: Mapping[str, float],
    kind: str = "model",
    parts: Mapping[str, headers.NetworkHeader] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `model` to one file, whole or not at all; a file already there is replaced.

    `parts` describes networks inside it by the prefix of their weights (see `header.of`), so
    that they can be loaded by themselves. `dtype` (torch.float16 or torch.bfloat16) stores
    floating-point weights in half the bytes; `load` gives them back in the model's own dtype.
    Raises CheckpointError if the disk is full or a weight does not fit the dtype.
    """
    own = model.state_dict()
    if dtype is not None:
        own = {k: v.to(dtype) if v.is_floating_point() else v for k, v in own.items()}
        for key, value in own.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise CheckpointError(f"{path}: weight {key!r} is not finite in {dtype}")
    whole = headers.of(model, kind=kind, name=name)
    header = Header(
        **vars(whole), step=step, metrics=dict(sorted(metrics.items())), parts=dict(parts or {})
    )
    write(Path(path), own, format=FORMAT, header=header.to_json())


def load(
    path: Path | str,
    *,
    kind: str = "model",
    name: str = "",
    build: Any = None,
    device: str = "cpu",
) -> Checkpoint:
    """Return the network of a registry `kind` in a file that `save` wrote, in eval mode.

    If the file holds a model of several parts, it is the one part of that kind, or the part called
    `name`. `build` is the class of a network that is not registered: a file names it, but it is
    not imported for that, since nothing in a file is executed.

    The header is checked whole, and every weight's shape and dtype is compared with the network's
    before any is read. Raises CheckpointError for a file that is missing, corrupt, of another
    format or kind, of a class that is not known here, or whose weights do not fit or are not
    finite; BudgetError for a network that is far larger than its file and the budget;
    MissingDependency for a device that is absent.
    """
    device_of = find_device(device)
    path = Path(path)
    with _opened(path, FORMAT) as (file, values):
        header = headers.parse(values, path)
        prefix, part = select(header, path, kind=kind, name=name)
        build = build or _class_of(part, path)
        model, settings = _built(build, part, path)
        own = {k.removeprefix(prefix): k for k in file.keys() if k.startswith(prefix)}
        weights.fill(model, {key: file.get_slice(k) for key, k in own.items()}, path)
    model = model.to(device_of).eval()
    return Checkpoint(
        model, part.name, model.spec, settings, header.step, header.metrics, part.kind
    )


def _built(build: Any, part: headers.NetworkHeader, path: Path) -> tuple[Any, Any]:
    """Return the untrained network that a header describes, and its config.

    Values within the types and ranges of its class may still not fit together, or a class may not
    check them: whatever building raises then is the file's fault.
    """
    largest = max(budget.allowed().bytes, 2 * 512 * path.stat().st_blocks)  # of what it really has
    try:
        settings, spec = _settings(build, part)
        with budget.using(replace(budget.allowed(), bytes=largest)), budget.reading(apart=True):
            with Allocations(f"{path}: {part.kind} {part.name!r}"):
                return build(spec, settings), settings
    except BudgetError:
        raise
    except Exception as e:
        said = str(e) if isinstance(e, LatentplanError) else f"{type(e).__name__}: {e}"
        raise CheckpointError(
            f"{path}: header does not fit this version of latentplan: {said}"
        ) from e


def _settings(build: Any, part: headers.NetworkHeader) -> tuple[Any, Spec]:
    """Return the Config and the spec that a header states, also one of an earlier version."""
    values, spec = part.config, part.spec
    if isinstance(build, Upgradable):
        values, spec = build.upgraded(values, spec)
    return config.from_values(build.Config, values), spec


def select(
    header: Header, path: Path | str, *, kind: str, name: str = ""
) -> tuple[str, headers.NetworkHeader]:
    """Return the prefix of the weights and the header of a network of `kind` in a file.

    It is the whole file's, or that of a part: the one called `name`, else the only one of `kind`.
    CheckpointError if there is none.
    """
    if header.kind == kind and kind != "part":
        return "", header
    parts = header.parts
    if name in parts and parts[name].kind == kind:
        return f"{name}.", _as_observed(parts[name], header)
    found = [prefix for prefix, part in parts.items() if part.kind == kind]
    if len(found) == 1 and kind != "part":
        return f"{found[0]}.", _as_observed(parts[found[0]], header)
    if header.kind == kind and (not name or header.name == name):
        return "", header
    wanted = f"{kind} {name!r}" if name and kind == "part" else kind
    inside = ", ".join(f"{prefix} ({part.kind})" for prefix, part in parts.items())
    raise CheckpointError(
        f"{path}: holds the {header.kind} {header.name!r}"
        f"{f' with the parts {inside}' if inside else ''}, need a {wanted}"
    )


def _as_observed(part: headers.NetworkHeader, whole: Header) -> headers.NetworkHeader:
    """Return a part's header with its cameras in the order in which the whole names them.

    A network that takes all images takes them in the order of its spec, and files of earlier
    versions sorted that by name.
    """
    seen, images = part.spec.observation, whole.config.get("images")
    named = [key for key in images if key in [*seen]] if isinstance(images, list) else []
    order = dict.fromkeys([*named, *seen])
    return replace(part, spec=replace(part.spec, observation={key: seen[key] for key in order}))


def with_parts_of_runs(settings: Any) -> Any:
    """Return a config dataclass whose parts `{run: ...}` have that run's name and config.

    CheckpointError if a run holds no part of the kind.
    """
    changed: dict[str, Any] = {}
    for each in fields(settings):
        part = getattr(settings, each.name)
        if not isinstance(part, Part) or not part.run or part.name:
            continue
        file = find(part.run)
        _, found = select(read_header(file), file, kind=part.kind)
        filled, _ = _settings(_class_of(found, file), found)
        changed[each.name] = replace(part, name=found.name, config=filled)
    return replace(settings, **changed)


def _class_of(part: headers.NetworkHeader, path: Path | str) -> Any:
    kind, name = part.kind, part.name
    known = registry.names(kind) if kind in registry.BUILT_IN else {}
    if name not in known:
        advice = "pass its class to load it" if ":" in name else "it is not installed here"
        raise CheckpointError(
            f"{path}: made by {kind} {name!r}, which is not registered; {advice}; "
            f"known: {', '.join(sorted(known)) or 'none'}"
        )
    return registry.get(kind, name)


def find(run: Path | str) -> Path:
    """Return the checkpoint file that a user means: a run folder, a file, or a shipped name.

    A run folder gives `best.safetensors`, or `last.safetensors` if nothing was evaluated yet.
    Raises CheckpointError if there is none.
    """
    path = Path(run).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for file in (path / "best.safetensors", path / "last.safetensors"):
            if file.is_file():
                return file
        raise CheckpointError(
            f"run {str(run)!r}: no checkpoint in this folder (best.safetensors, last.safetensors); "
            "train a model into it: latentplan train"
        )
    shipped = {file.parent.name: file for file in SHIPPED.glob("*/best.safetensors")}
    if str(run) in shipped:
        return shipped[str(run)]
    near = get_close_matches(str(run), shipped, 1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    raise CheckpointError(
        f"run {str(run)!r}: no such folder or file, and no checkpoint of that name is shipped;"
        f"{hint} shipped: {', '.join(sorted(shipped)) or 'none'}"
    )


def digest(file: Path) -> str:
    """Return the SHA-256 of a checkpoint file, in hexadecimal."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def find_device(name: str) -> torch.device:
    """Return the torch device called `name` (`cpu`, `cuda`, `cuda:1`); never another one.

    Raises ConfigError for a name that is none, MissingDependency if the device is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: found {name!r}, need cpu, cuda or cuda:INDEX") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: found {name!r}, need cpu, cuda or cuda:INDEX")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MissingDependency(
            f"device: {name!r} is not there ({torch.cuda.device_count()} CUDA devices seen by "
            f"torch {torch.__version__}); use cpu, or install a CUDA build of torch and its driver"
        )
    return device


def write(path: Path, tensors: Mapping[str, Tensor], *, format: str, header: object) -> None:
    """Write tensors and a JSON header to a safetensors file, whole or not at all.

    Raises CheckpointError if the disk does not take it; the file before it stays.
    """
    # A tensor that shares memory with another (tied weights) is stored once for each name.
    own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    text = json.dumps(header)  # in its order: that of the observations is the order of cameras
    try:
        with replacing(path) as partial:
            partial.write_bytes(serialize(own, {"format": format, "header": text}))
    except OSError as e:
        raise CheckpointError(
            f"{path}: not written ({e.strerror or e}); what was there before is intact, "
            "free some disk space"
        ) from e


def read(path: Path, *, format: str) -> tuple[dict[str, Tensor], Any]:
    """Return tensors (on the CPU) and header of a file that `write` wrote with this `format`.

    Raises CheckpointError if it is missing, corrupt or of another format.
    """
    with _opened(path, format) as (file, values):
        return {key: file.get_tensor(key) for key in file.keys()}, values


def read_values(path: Path, *, format: str) -> Any:
    """Return the header alone of a file that `write` wrote, as JSON values; raises as `read`."""
    with _opened(path, format) as (_, values):
        return values


def read_header(path: Path | str) -> Header:
    """Return the header of a checkpoint, checked; raises as `read` does."""
    return headers.parse(read_values(Path(path), format=FORMAT), path)


def numbers(path: Path) -> int:
    """Return how many weights a checkpoint has, without reading them; raises as `read` does."""
    with _opened(path, FORMAT) as (file, _):
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())


@contextmanager
def _opened(path: Path, format: str) -> Iterator[tuple[Any, Any]]:
    """Yield the file of tensors and its header's JSON values; CheckpointError also in the block."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    # safe_open opens its path twice, and a training may replace the file in between.
    whole = foreign.opened(path, error=CheckpointError)
    try:
        with whole, safe_open(f"/proc/self/fd/{whole.fileno()}", framework="pt") as file:
            meta = file.metadata() or {}
            found = meta.get("format", "none")
            before = (found, format) == (BEFORE, FORMAT)
            if found != format and not before:
                raise CheckpointError(
                    f"{path}: format is {found!r}, this version of latentplan reads {format!r}"
                )
            values = foreign.from_json(
                meta.get("header", ""), where=f"{path}: header", error=CheckpointError
            )
            yield file, _of_before(values, path) if before else values
    except (OSError, SafetensorError) as e:
        raise CheckpointError(
            f"{path}: corrupt or not a safetensors file ({e}); train it again or copy it again"
        ) from e


def _of_before(values: Any, path: Path) -> Any:
    """Return the header of a file of the format before as one of this."""
    name = values.pop("model", None) if isinstance(values, dict) else None
    if name == "videoworld":
        raise CheckpointError(
            f"{path}: a VideoWorld with the names of {BEFORE}; train it again with this version"
        )
    return {"kind": "model", "name": name, **values} if name is not None else values
