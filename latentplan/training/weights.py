"""Weights of a file compared with those of a network: names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentplan.errors import CheckpointError
from latentplan.protocols import UpgradableWeights

NAMES = {  # of dtypes in safetensors
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64"},
}
FLOATS, HALVES = ("F64", "F32"), ("F16", "BF16")


def fill(model: nn.Module, found: Mapping[str, Any], path: Path | str) -> None:
    """Put tensors, or the slices of a file, into `model`.

    Shapes and dtypes are compared before any slice is read; CheckpointError names the first that
    does not fit. Weights stored in half precision are converted to the model's; no other is.
    Those of earlier versions are first renamed, by every `protocols.UpgradableWeights`.
    """
    found = _upgraded(model, found)
    _check_fit(model, found, path)
    tensors: dict[str, Tensor] = {key: value[...] for key, value in found.items()}
    for key, value in tensors.items():
        if value.is_floating_point() and value.isnan().any():
            raise CheckpointError(f"{path}: weight {key!r} holds a NaN; train it again")
    model.load_state_dict(tensors)


def _upgraded(model: nn.Module, found: Mapping[str, Any]) -> Mapping[str, Any]:
    for path, module in model.named_modules():
        if isinstance(module, UpgradableWeights):
            prefix = f"{path}." if path else ""
            own = {k.removeprefix(prefix): found[k] for k in found if k.startswith(prefix)}
            others = {k: found[k] for k in found if not k.startswith(prefix)}
            today = module.upgraded_weights(own)
            found = others | {prefix + k: value for k, value in today.items()}
    return found


def _check_fit(model: nn.Module, tensors: Mapping[str, Any], path: Path | str) -> None:
    own = model.state_dict()
    for key in sorted(own.keys() | tensors.keys()):
        need, found = _shape(own.get(key)), _shape(tensors.get(key))
        if need != found:
            raise CheckpointError(
                f"{path}: weights do not fit the model: {key!r}: found {found or 'nothing'}, "
                f"need {need or 'no such weight'}; it was made by another version of the model, "
                "train it again"
            )
        kind, stored = _dtype(own[key]), _dtype(tensors[key])
        if kind != stored and (kind not in FLOATS or stored not in HALVES):
            halves = f", {' or '.join(HALVES)}" if kind in FLOATS else ""
            raise CheckpointError(
                f"{path}: weights do not fit the model: {key!r}: found {stored}, need "
                f"{kind}{halves}"
            )


def _shape(tensor: Any) -> str:
    """Return a tensor's shape as text; "" for none."""
    if tensor is None:
        return ""
    return str(tuple(tensor.shape if isinstance(tensor, Tensor) else tensor.get_shape()))


def _dtype(value: Any) -> str:
    """Return the name of a tensor's dtype, or of a slice's, as safetensors writes it: F32."""
    return NAMES.get(value.dtype, "none") if isinstance(value, Tensor) else value.get_dtype()
