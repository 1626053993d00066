"""Checkpoints: one safetensors file with a model's weights and everything that rebuilds it.

The header carries the model's registry name, its config and spec, the step and the held-out
figures as JSON, so that a file is loaded by itself, and nothing in it is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from latentplan import config, registry
from latentplan.errors import (
    CheckpointError,
    ConfigError,
    LatentplanError,
    MissingDependency,
    StoreError,
)
from latentplan.files import replacing
from latentplan.types import Spec

FORMAT = "latentplan-checkpoint-1"
SHIPPED = Path(__file__).parents[1] / "pretrained"  # package data: <name>/best.safetensors


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with what it was made from."""

    model: Any  # protocols.Dynamics and nn.Module, in eval mode
    name: str  # registry name of the model
    spec: Spec
    config: Any  # the model's Config
    step: int  # training steps done
    metrics: Mapping[str, float]  # held-out figures at that step


def save(
    path: Path | str,
    model: Any,
    *,
    name: str,
    step: int,
    metrics: Mapping[str, float],
    dtype: torch.dtype | None = None,
) -> None:
    """Write `model` to one file, whole or not at all; a file already there is replaced.

    `dtype` (torch.float16 or torch.bfloat16) stores floating-point weights in half the bytes;
    `load` gives them back in the model's own dtype. Raises CheckpointError where the disk is full
    or a weight does not fit the dtype.
    """
    weights = model.state_dict()
    if dtype is not None:
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
        for key, value in weights.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise CheckpointError(f"{path}: weight {key!r} is not finite in {dtype}")
    header = {
        "model": name,
        "config": config.to_values(model.config),
        "spec": model.spec.to_json(),
        "step": step,
        "metrics": dict(metrics),
    }
    write(Path(path), weights, format=FORMAT, header=header)


def load(path: Path | str, *, device: str = "cpu") -> Checkpoint:
    """Return the checkpoint in a file that `save` wrote, its model on `device`, in eval mode.

    Raises CheckpointError for a file that is missing, corrupt, of another format, of a model that
    is not known here, or whose weights do not fit; MissingDependency for a device that is absent.
    """
    where = find_device(device)
    weights, header = read(Path(path), format=FORMAT)
    try:
        name, step, metrics = header["model"], header["step"], header["metrics"]
        spec = Spec.from_json(header["spec"])
        known = registry.names("model")
        if name not in known:
            raise CheckpointError(
                f"{path}: made by model {name!r}, which is not installed here; "
                f"known: {', '.join(sorted(known))}"
            )
        build = registry.get("model", name)
        settings = config.from_values(build.Config, header["config"])
    except (KeyError, TypeError, StoreError, ConfigError) as e:
        raise CheckpointError(f"{path}: header does not fit this version of latentplan: {e}") from e
    model = build(spec, settings)
    fill(model, weights, path)
    return Checkpoint(model.to(where).eval(), name, spec, settings, step, metrics)


def find(run: Path | str) -> Path:
    """Return the checkpoint file that a user means: a run folder, a file, or a shipped name.

    A run folder gives `best.safetensors`, or `last.safetensors` where nothing was evaluated yet.
    Raises CheckpointError where there is none.
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


def find_device(name: str) -> torch.device:
    """Return the torch device called `name` (`cpu`, `cuda`, `cuda:1`); never another one.

    Raises ConfigError for a name that is none, MissingDependency where the device is not there.
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

    Raises CheckpointError where the disk does not take it; what was there before stays.
    """
    # A tensor that shares memory with another (tied weights) is stored once for each name.
    own = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    try:
        with replacing(path) as partial:
            partial.write_bytes(serialize(own, {"format": format, "header": text}))
    except OSError as e:
        raise CheckpointError(
            f"{path}: not written ({e.strerror or e}); what was there before is intact, "
            "free some disk space"
        ) from e


def read(path: Path, *, format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors (on the CPU) and header of a file that `write` wrote with this `format`.

    Raises CheckpointError where it is missing, corrupt or of another format.
    """
    with _opened(path, format) as (f, header):
        return {k: f.get_tensor(k) for k in f.keys()}, header


def read_header(path: Path, *, format: str) -> dict[str, Any]:
    """Return the header alone of a file that `write` wrote; raises as `read` does."""
    with _opened(path, format) as (_, header):
        return header


@contextmanager
def _opened(path: Path, format: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as f:
            meta = f.metadata() or {}
            found = meta.get("format", "none")
            if found != format:
                raise CheckpointError(
                    f"{path}: format is {found!r}, this version of latentplan reads {format!r}"
                )
            yield f, json.loads(meta["header"])
    except (OSError, SafetensorError, ValueError, KeyError) as e:
        if isinstance(e, LatentplanError):
            raise
        raise CheckpointError(
            f"{path}: corrupt or not a safetensors file ({e}); train it again or copy it anew"
        ) from e


def fill(model: nn.Module, weights: Mapping[str, Tensor], path: Path | str) -> None:
    """Put `weights` into `model`; CheckpointError names the first that does not fit."""
    own = model.state_dict()
    for key in sorted(own.keys() | weights.keys()):
        need = tuple(own[key].shape) if key in own else "no such weight"
        found = tuple(weights[key].shape) if key in weights else "nothing"
        if need != found:
            raise CheckpointError(
                f"{path}: weights do not fit the model: {key!r}: found {found}, need {need}; "
                "it was made by another version of the model, train it again"
            )
    model.load_state_dict(dict(weights))
