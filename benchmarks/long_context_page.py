"""Write the tables of docs/results/long_context.md from benchmarks/long_context.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from latentplan.files import replacing

FILE = Path(__file__).with_name("long_context.json")
PAGE = Path(__file__).parents[1] / "docs" / "results" / "long_context.md"


def write() -> None:
    """Replace the tables of the page by those of the sections that are measured."""
    figures = json.loads(FILE.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    tables = {"drawers": _drawers, "needle": _needle, "memory": _memory, "prefix": _prefix,
              "packing": _packing}  # fmt: skip
    for name, table in tables.items():
        if name in figures:
            rows = "\n".join("| " + " | ".join(row) + " |" for row in table(figures[name]))
            head, _, rest = rows.partition("\n")
            line = "|" + "---|" * head.count(" | ") + "---|"
            text = re.sub(
                rf"<!-- {name} -->.*?<!-- end -->",
                lambda _: f"<!-- {name} -->\n{head}\n{line}\n{rest}\n<!-- end -->",  # noqa: B023
                text,
                flags=re.DOTALL,
            )
    with replacing(PAGE) as partial:
        partial.write_text(text, encoding="utf-8")


def _share(of: dict[str, Any]) -> str:
    return f"{of['share']:.2f} ({of['low']:.2f} to {of['high']:.2f})"


def _mean(of: list[float]) -> str:
    return f"{of[0]:.3f} ({of[1]:.3f} to {of[2]:.3f})"


def _drawers(of: dict[str, Any]) -> list[list[str]]:
    short, long = (f"{a} to {b - 1} steps ago" for a, b in of["steps_between"].values())
    rows = [["success, block seen", short, long]]
    for name in ("long", "window"):
        about = f"{of[name]['context']} steps of context"
        rows.append([about, *(_share(of[name][delay]) for delay in ("short", "long"))])
    return [*rows, ["a drawer at random (control)", *[f"{of['chance']:.2f}"] * 2]]


def _needle(of: dict[str, Any]) -> list[list[str]]:
    rows = [["model, positions", *(f"cue at {depth} %" for depth in of["depths"])]]
    for name in ("long", f"window {of['window']}"):
        for length, cells in of[name].items():
            rows.append([f"{name}, {int(length):,}", *(_share(each) for each in cells)])
    return rows


def _memory(of: dict[str, Any]) -> list[list[str]]:
    names = [name for name in ("blockwise", "dense", "fused, masked") if name in of]
    rows = [["MiB of forward and backward", *names]]
    for length in of["blockwise"]["MiB"]:
        cells = [of[name]["MiB"].get(length) for name in names]
        shown = ["" if cell is None else f"{min(cell):.0f} to {max(cell):.0f}" for cell in cells]
        rows.append([f"{int(length):,} positions", *shown])
    fits = [("exponent of the length", "exponent", 1, 2), ("R² of a line", "r_squared", 1, 3),
            ("KiB a position, of a line", "bytes_per_position", 1024, 1)]  # fmt: skip
    for about, key, unit, digits in fits:
        row = [about]
        for name in names:
            value, interval = of[name][key], of[name].get(f"{key}_95")
            shown = f"{value / unit:.{digits}f}"
            if interval:
                low, high = (each / unit for each in interval)
                shown += f" ({low:.{digits}f} to {high:.{digits}f})"
            row.append(shown)
        rows.append(row)
    return rows


def _prefix(of: dict[str, Any]) -> list[list[str]]:
    rows = [["history, candidates", "prepare, s", "shared, s", "copied, s", "no cache, s",
             "speed-up of a solve", "cache shared / copied, MiB"]]  # fmt: skip
    for row in of["rows"]:
        again, speed = row.get("again_s"), row.get("speed_up")
        rows.append([
            f"{row['positions']:,} positions, {row['candidates']}",
            *(f"{row[key]:.3f}" for key in ("prepare_s", "shared_s", "copied_s")),
            "" if again is None else f"{again:.2f}",
            "" if speed is None else f"{speed:.0f} x",
            f"{row['shared_MiB']:.1f} / {row['copied_MiB']:.0f}",
        ])  # fmt: skip
    return rows


def _packing(of: dict[str, Any]) -> list[list[str]]:
    # mean over seeds, and the paired difference
    rows = [["held-out nats a token", "short episodes", "long episodes", "short, less the first"]]
    for name in of["nats"]:
        more = of["difference"].get(name)
        cells = [_mean(of[name][kind]) for kind in ("short", "long")]
        rows.append([name, *cells, _mean(more["short"]) if more else ""])
    return rows
