"""An image of held-out frames, decoded from few to all of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange

from latentplan import png
from latentplan.data.windows import Windows
from latentplan.errors import StoreError
from latentplan.nn import images
from latentplan.protocols import EpisodeStore
from latentplan.types import Tensors

DRAWN = 6  # frames, or blocks of frames


def draw(
    store: EpisodeStore,
    folder: Path,
    *,
    keys: Sequence[str],
    name: str,
    stride: int,
    device: torch.device,
    decoded: Callable[[Tensors], Mapping[int, Tensors]],
) -> Iterator[tuple[Path, str]]:
    """Yield an image of each camera of `keys`, and the PSNR of its rows.

    `decoded` returns frames by the number of tokens they are decoded from, given windows of
    `stride` frames. Raises StoreError, with the tokenizer's `name`, if there are no such images.
    """
    for key in keys:
        if key not in store.spec.observation:
            raise StoreError(f"data: has no images {key}, which {name} observes")
    chosen = {"length": stride, "batch": DRAWN, "split": "test"}
    found = Windows(store, keys=keys, **chosen)[0].observations  # type: ignore[arg-type]
    seen = {key: each.to(device) for key, each in found.items()}
    with torch.no_grad():
        shown = decoded(seen)
    for key in keys:
        grid = torch.stack([each[key][:, 0] for each in (seen, *shown.values())])  # r b h w c
        true, *rows = grid.movedim(-1, -3).float() / 127.5 - 1
        psnr = [f"{n}: {images.psnr(x, true):.1f} dB" for n, x in zip(shown, rows, strict=True)]
        framed = F.pad(grid, (0, 0, 0, 2, 0, 2), value=255)  # a white line between images
        image = rearrange(framed, "r b h w c -> (r h) (b w) c").cpu().numpy()
        file = png.write(folder / f"tokens_{key}.png", image)
        yield file, f"held-out frames, then decoded from tokens: {', '.join(psnr)}"
