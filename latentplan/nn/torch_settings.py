"""Independence of the caller's global torch settings.

A planner is embedded in programs that set a default dtype or device, run in inference mode or
autocast, or demand deterministic kernels. Inside `own_torch_settings` all of these are as in a new
program. The number of threads remains the caller's: sums of another order may round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch

DEVICES = ("cpu", "cuda")  # whose autocast may be on
EXACT, TF32 = "ieee", "tf32"  # roundings of float32 products

_inside = ContextVar("inside", default=False)


@contextmanager
def own_torch_settings() -> Iterator[None]:
    """Run code with torch's defaults, and restore the caller's settings after it.

    Inside another such context it changes nothing.
    """
    if _inside.get():
        yield
        return
    with ExitStack() as stack:
        stack.callback(_inside.reset, _inside.set(True))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # it slows each operation down
            stack.enter_context(torch.device("cpu"))
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        _replace(stack, torch.get_default_dtype, torch.set_default_dtype, torch.float32)
        _replace(stack, torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, 0)
        if any(each.fp32_precision not in (EXACT, "none") for each in _products()):
            stack.enter_context(float32_products(EXACT))
        yield


@contextmanager
def float32_products(rounding: str) -> Iterator[None]:
    """Let float32 matrix products round as EXACT or TF32 says."""
    products = _products()
    before = [each.fp32_precision for each in products]
    for each in products:
        each.fp32_precision = rounding
    try:
        yield
    finally:
        for each, value in zip(products, before, strict=True):
            each.fp32_precision = value


class _Legacy:
    """`fp32_precision` of all backends together, for torch before 2.9."""

    @property
    def fp32_precision(self) -> str:
        return EXACT if torch.get_float32_matmul_precision() == "highest" else TF32

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        torch.set_float32_matmul_precision("highest" if value == EXACT else "high")


def _products() -> tuple[Any, ...]:
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return (_Legacy(),)
    return backends.cuda.matmul, backends.mkldnn.matmul


def _replace(
    stack: ExitStack, read: Callable[[], Any], write: Callable[[Any], None], value: Any
) -> None:
    before = read()
    if before != value:
        stack.callback(write, before)
        write(value)
