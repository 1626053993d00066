"""The precision of rollouts, and protection from the caller's torch settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from latentplan.errors import ConfigError
from latentplan.nn.observations import device_of
from latentplan.nn.torch_settings import TF32, float32_products
from latentplan.protocols import Dynamics
from latentplan.types import Context

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Precision:
    """A model in the precision of its rollouts; the encoder keeps that of the weights."""

    def __init__(self, model: Dynamics, dtype: str) -> None:
        """Copy the model if `dtype` is a half precision; ConfigError for tf32 without CUDA."""
        self.model, self._name, self._dtype = model, dtype, DTYPES[dtype]
        if dtype == "tf32" and device_of(model).type != "cuda":
            raise ConfigError(
                f"MPC.dtype: tf32 needs a CUDA device, the model is on {device_of(model)}"
            )
        if self._dtype != torch.float32:
            self.model = cast(Dynamics, deepcopy(cast(nn.Module, model)).to(self._dtype))

    def context(self, context: Context) -> Context:
        """Return the context in the precision of the rollouts."""
        memory = None if context.memory is None else context.memory.to(self._dtype)
        latents, actions = context.latents.to(self._dtype), context.actions.to(self._dtype)
        return replace(context, latents=latents, actions=actions, memory=memory)

    @contextmanager
    def rounding(self) -> Iterator[None]:
        """Return a context in which CUDA multiplies float32 in TF32 if dtype is tf32."""
        if self._name != "tf32":
            yield
            return
        with float32_products(TF32):
            yield
