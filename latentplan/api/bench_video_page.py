"""The page and the image of a comparison of imagined video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentplan.api.bench_tables import head, interval, line, origin
from latentplan.files import replacing
from latentplan.types import Array

SHOWN = (0, 1, 3, 7, 11, 15)  # frames of a row, as far as they go
CLIPS = 2  # drawn one below the other
LEGEND = """\
Figures are pooled over frames 1 to k of all clips, with 95 % intervals of a bootstrap over clips.
A pixel moves if a colour differs by 24 of 255 or more from the last frame given; `gain` is over
repeating that frame. An object is kept in a frame if its mask by colour overlaps the true one by
half or more (intersection over union), of the frames in which 8 of its pixels are to be seen."""


def render(
    rows: Mapping[str, Any], refused: Mapping[str, str], made: Mapping[str, Any]
) -> str:
    """Return the page as Markdown; `made` are settings, data, command, versions and machine."""
    parts = ["# Imagined video, open loop", ""]
    first = next(iter(rows.values()))
    for k in first:
        names = list(first[k]["kept"])
        columns = ["", "moving PSNR, dB", "gain, dB", "PSNR, dB", *(f"{n} kept" for n in names)]
        parts += [f"## {k} frame{'s' if k != '1' else ''}", "", *head(columns)]
        for name, found in rows.items():
            row = found[k]
            cells = [_number(row[each]) for each in ("psnr_moving", "gain", "psnr")]
            cells += [_number(row["kept"][each], percent=True) for each in names]
            parts.append(line([name, *cells]))
        parts.append("")
    parts += [f"`{name}` cannot be compared: it {reason}." for name, reason in refused.items()]
    s = made["settings"]
    parts += [
        *([""] if refused else []),
        LEGEND,
        "",
        f"{s['clips']} clips of {made['data']['path']} ({s['split']}), {s['context']} frames "
        f"given, camera {s['camera']}, temperature {s['temperature']}, seed {s['seed']}.",
        "",
        *origin(made, device=s["device"]),
    ]
    return "\n".join(parts) + "\n"


def draw(path: Path, shown: Mapping[str, Array]) -> None:
    """Write an image: a row for each of `shown` (n, t, h, w, 3) uint8, time to the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = next(iter(shown.values())).shape[1]
    times = [t for t in SHOWN if t < steps]
    rows = [(name, clip) for clip in range(CLIPS) for name in shown]
    figure, axes = pyplot.subplots(
        len(rows), len(times), figsize=(1.1 * len(times) + 1.2, 1.1 * len(rows)), squeeze=False
    )
    for across, (name, clip) in zip(axes, rows, strict=True):
        for axis, t in zip(across, times, strict=True):
            axis.imshow(np.asarray(shown[name][clip, t]), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if axis.get_subplotspec().is_first_row():
                axis.set_title(f"{t + 1}", fontsize=8)
        across[0].set_ylabel(name.replace(": ", "\n"), fontsize=6)
    figure.tight_layout(pad=0.2)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    pyplot.close(figure)


def _number(found: Mapping[str, Any], *, percent: bool = False) -> str:
    if found["value"] is None:
        return ""
    scale, digits = (100, 0) if percent else (1, 1)
    value = f"{scale * found['value']:.{digits}f}{' %' if percent else ''}"
    return value + interval(found["ci95"], digits, scale)
