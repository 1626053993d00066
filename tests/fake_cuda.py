"""Tensors that claim to be on `cuda:0`, on a machine without one.

They are tensors of the meta device, which have shapes and no values, so that every operation runs,
gradients too, in no time. Inside `FakeCuda` their device reads `cuda:0`, and what a GPU does not
allow, or would have to wait for, raises `Waits` or `OtherDevice`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import latentplan
from latentplan.planning import noise

CUDA, META, CPU = torch.device("cuda:0"), torch.device("meta"), torch.device("cpu")
ROOT = str(Path(latentplan.__file__).parent)
aten = torch.ops.aten
GETTERS = {
    Tensor.device.__get__: lambda tensor: CUDA if tensor.is_meta else tensor.device,
    Tensor.is_cuda.__get__: lambda tensor: tensor.is_meta,
    Tensor.is_meta.__get__: lambda tensor: False,
}
MAKE = {torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, Tensor.new_tensor}
INDEX = {Tensor.__getitem__, Tensor.__setitem__}
COPIES = {aten.copy_, aten._to_copy}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# Operations whose CUDA kernels read a value or a shape back; some of them do so unseen.
READS = {
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.allclose),
    *(aten.nonzero, aten.masked_select, aten.bincount, aten.unique_dim, aten.unique_consecutive),
    *(aten._unique, aten._unique2, aten.multinomial, aten.repeat_interleave, aten.histc),
    *(aten._linalg_check_errors, aten._assert_async, aten.linalg_lstsq, aten.linalg_eigvals),
}
# Where the CPU waits by another library's design, and why.
VECTOR_QUANTIZE = {
    "nn/quantizer.py:forward": "VectorQuantize reads whether its code book is initialised, and "
    "whether codes are dead; finite scalar quantization, the default, does neither",
    "tokenizers/video_vqvae.py:_quantized": "VectorQuantize, too",
    "models/teco/layers.py:forward": "VectorQuantize, too",
}
UNSEEN = {aten.repeat_interleave: "Tensor"}  # the overload that reads


class Waits(AssertionError):
    """The CPU would wait for the GPU."""


class OtherDevice(AssertionError):
    """An operation has tensors of two devices."""


class FakeGenerator(torch.Generator):
    """A generator that claims to be of any device; its numbers are never drawn."""

    def __new__(cls, device: Any = "cpu") -> FakeGenerator:
        made = super().__new__(cls)
        made.claimed = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.claimed


class FakeCuda:
    """Context in which `cuda:0` is there, and waiting for it is an error.

    `allowed` are the places that may wait, `FILE:FUNCTION` below latentplan, with the reason; there
    a value read from the device is True, 1 or zeros. `inside` are functions in which nothing may be
    copied to the device either: a copy from ordinary memory waits for all work before it, and
    cannot be captured as a CUDA graph.
    """

    def __init__(self, allowed: Mapping[str, str], *, inside: tuple[str, ...] = ()) -> None:
        self.allowed, self.inside = allowed, inside
        self.waited: list[str] = []  # the places that did

    @contextmanager
    def __call__(self) -> Iterator[FakeCuda]:
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(torch, "Generator", FakeGenerator)
            patch.setattr(torch.cuda, "synchronize", lambda device=None: self.wait("synchronize"))
            for made in (noise.colour, noise.spline):  # by device
                made.cache_clear()
                stack.callback(made.cache_clear)
            stack.enter_context(_Names(self))
            stack.enter_context(_Operations(self))
            yield self

    def wait(self, what: str) -> None:
        """Raise Waits unless the place that called may wait."""
        places = _places()
        if not self.allowed.keys() & set(places[:1]):
            raise Waits(f"{what} waits for the GPU, in {' < '.join(places[:4])}")
        self.waited.append(places[0])

    def copy(self, what: str) -> None:
        """Raise Waits if a copy to the device is made inside a solve."""
        places = _places()
        if set(self.inside) & set(places) and places[0] not in self.allowed:
            raise Waits(f"{what} copies to the GPU, in {' < '.join(places[:4])}")


class _Names(TorchFunctionMode):
    """Reads `cuda:0` as the meta device, and back; draws without a generator."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in GETTERS:
            return GETTERS[func](args[0])
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        kwargs = {key: _meta(value) for key, value in (kwargs or {}).items() if key != "generator"}
        found = func(*map(_meta, args), **kwargs)
        if func in MAKE and found.is_meta and not isinstance(args[0], Tensor):
            self.cuda.copy("a new tensor")
        if func in INDEX and args[0].is_meta and _has_list(args[1]):
            self.cuda.copy("a list of indices")
        return found


class _Operations(TorchDispatchMode):
    """Checks the devices of each operation, and answers for the values that a GPU would have."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket
        tensors = _tensors(args, kwargs)
        if name in COPIES:
            return self._copied(func, args, kwargs)
        if not any(each.is_meta for each in tensors):
            return func(*args, **kwargs)
        if name in INDEXED:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.cuda.wait(f"{name} by a mask")
                elif index is not None and not index.is_meta:
                    self.cuda.copy(f"{name} by a tensor of the CPU")
        elif any(not each.is_meta and each.ndim for each in tensors):
            raise OtherDevice(f"{name} of tensors on the CPU and the GPU, in {_places()[:4]}")
        if name in READS and UNSEEN.get(name) in (None, func._overloadname):
            self.cuda.wait(str(name))
            if name is aten._local_scalar_dense:
                return True
        return _run(func, args, kwargs)

    def _copied(self, func: Any, args: Any, kwargs: Any) -> Any:
        to = args[0].device if func is aten.copy_.default else kwargs.get("device")
        source = args[1] if func is aten.copy_.default else args[0]
        if to == META and not source.is_meta and source.ndim:
            self.cuda.copy("a tensor of the CPU")
        if to == CPU and source.is_meta:
            self.cuda.wait("a copy to the CPU")
            zeros = torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
            return zeros if func is not aten.copy_.default else args[0].copy_(zeros)
        return func(*args, **kwargs)


SHAPES: dict[Any, list[Any]] = {}  # of the results of operations, by those of their arguments


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on meta tensors, but only once for the same shapes.

    Torch derives shapes in Python, which takes ten times as long as making a tensor.
    """
    makes, writes = _kind(func)
    if not makes and not writes:  # a view
        return func(*args, **kwargs)
    key = (func, *map(_outline, args), *map(_outline, kwargs.items()))
    if key not in SHAPES:
        found = func(*args, **kwargs)
        if writes:
            SHAPES[key] = []
            return found
        results = found if isinstance(found, tuple) else [found]
        if not all(each is None or each.is_meta for each in results):
            return found
        SHAPES[key] = [
            None if each is None else (each.shape, each.stride(), each.dtype) for each in results
        ]
        return found
    if writes:  # there is nothing to write
        return kwargs[writes] if writes in kwargs else args[0]
    made = [
        None if each is None else torch.empty_strided(*each[:2], dtype=each[2], device=META)
        for each in SHAPES[key]
    ]
    return tuple(made) if len(func._schema.returns) > 1 else made[0]


@cache
def _kind(func: Any) -> tuple[bool, str]:
    """Return whether an operation makes new tensors, or the one argument that it writes to."""
    schema = func._schema
    if any(str(each.type) != "Tensor" for each in schema.returns):
        return False, ""
    written = [each.name for each in schema.arguments if each.is_write]
    if len(written) == len(schema.returns) == 1 and written[0] in ("self", "out"):
        return False, written[0]
    return not written and not any(each.alias_info for each in schema.returns), ""


def _outline(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.is_meta
    if isinstance(value, tuple | list):
        return tuple(map(_outline, value))
    return type(value), value


def _meta(value: Any) -> Any:
    """Return the meta device for the name or the device `cuda`, other values as they are."""
    is_cuda = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
    return META if is_cuda else value


def _has_list(index: Any) -> bool:
    return any(isinstance(each, list) for each in (index if isinstance(index, tuple) else [index]))


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list):
            found += [each for each in value if isinstance(each, Tensor)]
    return found


def _places() -> list[str]:
    """Return the functions of latentplan that are being called, `FILE:FUNCTION`, last first."""
    frame, found = sys._getframe(1), []
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(ROOT):
            found.append(f"{file[len(ROOT) + 1 :]}:{frame.f_code.co_name}")
        frame = frame.f_back
    return found
