"""Bases (H, P) that turn P independent normal numbers into correlated noise over the horizon.

They are kept for good: a captured CUDA graph reads them at their address.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

DEGREES = {"zero": 0, "linear": 1, "cubic": 3}


@cache
def colour(horizon: int, beta: float, *, like: tuple[torch.device, torch.dtype]) -> Tensor:
    """Return the basis (H, P) of noise with power density 1 / f^beta and variance 1.

    beta 0 is white, 1 pink and 2 red; a higher beta is smoother over the horizon. This is Timmer &
    Koenig, "On generating power law noise" (1995), as a matrix whose columns are the scaled cosine
    and sine of each frequency. As in the paper, the constant has the power of the next frequency.
    """
    frequency = np.fft.rfftfreq(horizon)
    frequency[0] = 1 / horizon
    power = frequency ** (-beta / 2)
    power[0] *= 0.5**0.5  # the constant and the Nyquist frequency have a cosine only
    power[horizon // 2] *= 0.5**0.5 if horizon % 2 == 0 else 1
    angle = 2 * np.pi * np.outer(np.arange(horizon), np.fft.rfftfreq(horizon))
    basis = np.concatenate([np.cos(angle) * power, np.sin(angle) * power], axis=1)
    basis = basis[:, np.abs(basis).max(0) > 1e-9]  # drops their sines, which are zero
    basis /= np.sqrt((basis**2).sum(1, keepdims=True))
    return _tensor(basis, like)


@cache
def spline(
    horizon: int, knots: int, degree: str, *, like: tuple[torch.device, torch.dtype]
) -> Tensor:
    """Return the basis (H, P) that interpolates P knots, evenly spaced over the horizon.

    `degree` is "zero" (piecewise constant), "linear" or "cubic"; it is lowered if there are too few
    knots for it.
    """
    knots = min(knots, horizon)
    power = min(DEGREES[degree], knots - 1)
    if power == 0:
        at = np.arange(horizon) * knots // horizon
        return _tensor(np.eye(knots)[at], like)
    steps = np.linspace(0, horizon - 1, knots)
    basis = make_interp_spline(steps, np.eye(knots), k=power)(np.arange(horizon))
    return _tensor(basis, like)


def _tensor(
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    like: tuple[torch.device, torch.dtype],
) -> Tensor:
    device, dtype = like
    return torch.as_tensor(values, dtype=dtype, device=device)
