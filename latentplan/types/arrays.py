"""Arrays, and observations as mappings of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = np.ndarray[Any, Any]
Observation: TypeAlias = Mapping[str, Array]  # sensor readings at one time, by name
Tensors: TypeAlias = Mapping[str, "Tensor"]  # observations (B, T, ...) by name
