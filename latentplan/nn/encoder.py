"""The encoder that models share: observations of any spec as latents.

Each observation has a network of its kind, whose features are concatenated and mapped to a latent
by one linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from latentplan.errors import ConfigError, ShapeError, check_range
from latentplan.nn.sensors import Sensor, sensor
from latentplan.types import Moments, Spec, Tensors

LAYER = re.compile(r"([0-9]{1,4})\.(weight|bias)")  # of a list of layers

T = TypeVar("T")


@dataclass(frozen=True)
class EncoderConfig:
    """The fields of an encoder, which the Config of a model inherits."""

    latent: int = 64  # numbers of a latent
    channels: tuple[int, ...] = (16, 32, 64, 96)  # of the convolutions of an image
    strides: tuple[int, ...] = (2, 2, 2, 2)  # 1 (kernel 3) or 2 (kernel 4)
    widths: tuple[int, ...] = (64, 64)  # of the layers of a vector, or of each point of a cloud
    observe: tuple[str, ...] = ()  # observations that are encoded; () for all public ones
    frames: int = 1  # last observations that a latent is of; before the first, the first repeats

    def __post_init__(self) -> None:
        """Raise ConfigError if a field is out of its range."""
        where = owner(self)
        check_range(f"{where}.latent", self.latent, 1, 4096)
        check_range(f"{where}.frames", self.frames, 1, 100)
        if len(self.channels) != len(self.strides) or not self.channels:
            raise ConfigError(
                f"{where}.strides: {len(self.strides)} for {len(self.channels)} channels; "
                "give one a convolution"
            )
        for channels, stride in zip(self.channels, self.strides, strict=True):
            check_range(f"{where}.channels", channels, 1, 4096)
            check_range(f"{where}.strides", stride, 1, 2)
        if not self.widths:
            raise ConfigError(f"{where}.widths: found none, need at least one")
        for width in self.widths:
            check_range(f"{where}.widths", width, 1, 4096)


def owner(config: EncoderConfig) -> str:
    """Return the class that a Config belongs to, with which errors begin."""
    return type(config).__qualname__.removesuffix(".Config")


def observed(config: EncoderConfig, spec: Spec) -> tuple[str, ...]:
    """Return the keys of `spec` that are encoded; ConfigError if one is missing or privileged."""
    public = sorted(set(spec.observation) - set(spec.privileged))
    where, known = f"{owner(config)}.observe", ", ".join(public) or "none"
    for key in config.observe:
        if key not in public:
            raise ConfigError(f"{where}: no observation {key!r}; the data have: {known}")
    if len(set(config.observe)) < len(config.observe):
        raise ConfigError(f"{where}: found {config.observe}, need each key once")
    if not public:
        raise ConfigError(f"{where}: the data have no observations that are not privileged")
    return config.observe or tuple(public)  # sorted, since checkpoints do not keep their order


class Encoder(nn.Module):
    """Latents (B, T, d) of observations, each (B, T, ...)."""

    def __init__(self, spec: Spec, config: EncoderConfig) -> None:
        """Build a network for each observation; ConfigError names one that cannot be encoded."""
        super().__init__()
        self.keys = observed(config, spec)
        read = {*self.keys} | ({spec.pick.image} if spec.pick else set())  # picks are planned in it
        seen = {key: array for key, array in spec.observation.items() if key in read}
        self.spec = replace(spec, observation=seen, privileged=())  # of what is read
        self.frames = config.frames
        self.sensors = nn.ModuleList(
            sensor(
                owner(config),
                key,
                spec.observation[key],
                frames=config.frames,
                channels=config.channels,
                strides=config.strides,
                widths=config.widths,
            )
            for key in self.keys
        )
        features = sum(each.features for _, each in self._sensors())
        self.output = nn.Linear(features, config.latent)

    def forward(self, observations: Tensors) -> Tensor:
        """Return the latents (B, T, d) of observations, each (B, T, ...); images are uint8."""
        features = []
        for key, each in self._sensors():
            x = observations[key]
            batch, shape = len(x), tuple(x.shape[2:])
            if shape != self.spec.observation[key].shape:
                raise ShapeError(
                    f"Encoder[{key!r}]: found shape {tuple(x.shape)}, need (B, T, "
                    f"{', '.join(map(str, self.spec.observation[key].shape))})"
                )
            features.append(each(self._stacked(x)))
        together = features[0] if len(features) == 1 else torch.cat(features, dim=1)
        latents: Tensor = rearrange(self.output(together), "(b t) d -> b t d", b=batch)
        return latents

    @property
    def scaled(self) -> tuple[str, ...]:
        """Observations that are scaled by their statistics: see `protocols.Normalised`."""
        return tuple(key for key, each in self._sensors() if each.scaling is not None)

    def fit_statistics(self, observations: Mapping[str, Moments]) -> None:
        """Scale the observations `scaled` by their statistics."""
        for key, each in self._sensors():
            if each.scaling is not None:
                each.scaling.fit(observations[key])

    def _sensors(self) -> Iterator[tuple[str, Sensor]]:
        return zip(self.keys, cast(Iterable[Sensor], self.sensors), strict=True)

    def _stacked(self, x: Tensor) -> Tensor:
        """Return the last frames (B T, f, ...) at each of x (B, T, ...)."""
        if self.frames == 1:
            return rearrange(x, "b t ... -> (b t) 1 ...")
        first = x[:, :1].expand(-1, self.frames - 1, *x.shape[2:])
        frames = torch.cat([first, x], dim=1).unfold(1, self.frames, 1)
        return rearrange(frames, "b t ... f -> (b t) f ...")

    def upgraded_weights(self, weights: Mapping[str, T]) -> dict[str, T]:
        """Return the weights by today's names; before, the layers of the one image were a list."""
        numbers = {key: LAYER.fullmatch(key) for key in weights}
        last = max((int(found[1]) for found in numbers.values() if found), default=0)

        def today(key: str) -> str:
            found = numbers[key]
            if found is None:
                return key
            return f"output.{found[2]}" if int(found[1]) == last else f"sensors.0.layers.{key}"

        return {today(key): value for key, value in weights.items()}
