"""The tables of docs/results/videoworld.md, from benchmarks/videoworld.json."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import videoworld_rollouts as rollouts
import videoworld_timing as timing

from latentplan.files import replacing

PAGE = Path(__file__).parents[1] / "docs" / "results" / "videoworld.md"
MARK = r"<!-- table: {} -->\n.*?<!-- end -->"


def write(found: Mapping[str, Any]) -> None:
    """Write each table between its marks, and keep the text around them."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables(found).items():
        mark = re.compile(MARK.format(name), re.DOTALL)
        if not mark.search(text):
            raise SystemExit(f"{PAGE}: has no marks for the table {name!r}")
        filled = f"<!-- table: {name} -->\n{table}\n<!-- end -->"
        text = mark.sub(lambda _, filled=filled: filled, text)
    with replacing(PAGE) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables for which there are figures, as Markdown."""
    made = {}
    if "success" in found:
        rows = found["success"]
        made["success"] = table(["policy", *rollouts.COUNTED], [
            [name, *(share(row["categories"].get(c)) for c in rollouts.COUNTED)]
            for name, row in rows.items()
        ])  # fmt: skip
    if "ablations" in found:
        rows = found["ablations"]
        made["ablations"] = table(["variant", *rollouts.COUNTED], [
            [name, *(share(row["categories"].get(c)) for c in rollouts.COUNTED)]
            for name, row in rows.items()
        ])  # fmt: skip
    if "intervene" in found:
        made["intervene"] = table(["run", "random codes", *rollouts.COUNTED], [
            [run, which, *(share(row["categories"].get(c)) for c in rollouts.COUNTED)]
            for run, each in found["intervene"].items()
            for which, row in each.items()
        ])  # fmt: skip
    if "probe" in found:
        probed = found["probe"]
        names = list(next(iter(probed.values()))["probes"])
        head = ["input of the linear probe"]
        head += [f"{run}, {what}" for run in probed for what in ("position", "all")]
        made["probe"] = table(head, [
            [name, *(r2(each) for row in probed.values()
                     for each in (row["probes"][name]["position"], row["probes"][name]))]
            for name in names
        ])  # fmt: skip
        head = ["run", "PSNR of tokens", "codes in use", "perplexity", "tokens in use"]
        made["codes"] = table(head, [
            [run, ", ".join(f"{key} {db:.1f} dB" for key, db in row["psnr"].items()),
             *counted(row["codes"]["all"]), f"{row['tokens']['usage']:.0%}"]
            for run, row in probed.items()
        ])  # fmt: skip
    if "proposals" in found:
        head = ["env", "candidates", "proposals", "success", "progress", "`act` p90, ms"]
        made["proposals"] = table(head, [
            [report["env"], str(row["candidates"]), "yes" if row["proposer"] else "no",
             interval(row, "success"), interval(row, "progress"), f"{row['act_ms_p90']:.0f}"]
            for report in found["proposals"] for row in report["rows"]
        ])  # fmt: skip
    if "timing" in found:
        made["timing"] = table(
            ["run", "batch", "codes, ms", "without cache", "frame, ms", "without cache",
             "tokens/s", "`act`, ms"],
            [timed(run, row, batch) for run, row in found["timing"].items()
             for batch in timing.BATCHES],
        )  # fmt: skip
    return made


def timed(run: str, row: Mapping[str, Any], batch: int) -> list[str]:
    """Return a row of the table of timings."""
    each = row[f"batch_{batch}"]
    cells = [f"{run}, {row['device']}, {row['torch_threads']} threads", str(batch)]
    for part in ("codes", "frame"):
        cells.append(f"{each[f'{part}_ms_cached']:.1f}")
        cells.append(f"{each[f'{part}_ms_uncached']:.1f} (x {each[f'{part}_speedup']:.1f})")
    act = row["act"]
    cells.append(f"{each['frame_tokens_per_s']:.0f}")
    cells.append(f"{act['p50_ms']:.1f}, p90 {act['p90_ms']:.1f}" if batch == 1 else "")
    return cells


def share(row: Mapping[str, Any] | None) -> str:
    """Return a success rate with its interval, in per cent."""
    if row is None:
        return "–"
    low, high = (100 * x for x in row["interval"])
    return f"{100 * row['success']:.0f} % ({low:.0f} to {high:.0f})"


def interval(row: Mapping[str, Any], name: str) -> str:
    """Return a metric of `latentplan plan` with its interval."""
    low, high = (abs(x) if abs(x) < 5e-3 else x for x in row[f"{name}_ci95"])  # no minus zero
    return f"{row[name]:.2f} ({low:.2f} to {high:.2f})"


def r2(row: Mapping[str, Any]) -> str:
    """Return an R2 with its interval."""
    return f"{row['r2']:.2f} ({row['interval'][0]:.2f} to {row['interval'][1]:.2f})"


def counted(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the share of a codebook in use, and the perplexity."""
    return f"{row['usage']:.0%} of {row['size']}", f"{row['perplexity']:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
