"""The tables of docs/results/selftok.md, of the figures in benchmarks/selftok.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentplan.files import replacing

FILE = Path(__file__).with_name("selftok.json")
PAGE = Path(__file__).parents[1] / "docs" / "results" / "selftok.md"


def write_page() -> None:
    """Write each section's table between its marks."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    tables = {"reveal": reveal, "entropy": entropy, "goals": goals}
    for name, table in tables.items():
        if name not in found:
            continue
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, mark, rest = page.partition(begin)
        if not mark:
            raise SystemExit(f"{PAGE}: has no mark {begin.strip()}")
        page = before + begin + "\n".join(table(found[name])) + "\n" + end + rest.partition(end)[2]
    with replacing(PAGE) as partial:
        partial.write_text(page, encoding="utf-8")


def cell(figure: dict[str, Any], digits: int = 2) -> str:
    """Return a value with its interval."""
    low, high = figure["interval"]
    return f"{figure['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def reveal(found: dict[str, Any]) -> list[str]:
    """Return the table of PSNR by tokens given."""
    psnr = found["psnr"]
    names = [("all", "coarse to fine"), ("all", "fine to coarse"), ("rope", "coarse to fine"),
             ("cloth", "coarse to fine")]  # fmt: skip
    heads = ["coarse to fine, dB", "fine to coarse, dB (control)", "rope", "cloth"]
    return table(
        ["tokens given", *heads],
        [
            [str(n), *(cell(psnr[kind][order][i]) for kind, order in names)]
            for i, n in enumerate(found["tokens"])
        ],
    )


def entropy(found: dict[str, Any]) -> list[str]:
    """Return the table of nats by position, one row a tokenizer and order."""
    rows = []
    for name in ("selftok", "vqvae"):
        for stride, order in found[name]["orders"].items():
            kind = "in order" if stride == "1" else f"every {stride}th"
            rows.append([
                f"{name}, {kind}",
                cell(order["unigram"]), cell(order["mean"]["nats"]), cell(order["mean"]["gain"]),
                "; ".join(cell(x) for x in order["fall"]["entropy"]),
                "; ".join(f"{x:.2f}" for x in order["spearman"]),
            ])  # fmt: skip
    heads = ["unigram entropy", "nats a token", "gain", "fall of entropy", "rank correlation"]
    return table(["tokens", *heads], rows)


def goals(found: dict[str, Any]) -> list[str]:
    """Return the table of costs against the keypoints' distance."""
    picked = found["distance_of_the_choice_mm"]
    rows = []
    for name, distance in picked.items():
        parts = found["correlation"].get(name)
        each = [cell(parts[kind]) for kind in ("all", "near", "far")] if parts else [""] * 3
        rows.append([name, *each, cell(distance, 1)])
    rows += [["the nearest (bound)", *[""] * 3, cell(found["distance_of_the_best_mm"], 1)]]
    rows += [["any (control)", *[""] * 3, cell(found["distance_of_any_mm"], 1)]]
    heads = ["rank correlation", "of the nearest quarter", "of the farther half"]
    return table(["cost", *heads, "distance of the choice, mm"], rows)
