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
    tables = {"reveal": reveal, "entropy": entropy, "goals": goals, "plan": plan, "grpo": grpo}
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
    names = [(kind, order) for kind in ("rope", "cloth") for order in psnr[kind]]
    return table(
        ["tokens given", *(f"{kind}, {order}, dB" for kind, order in names)],
        [
            [str(n), *(cell(psnr[kind][order][i]) for kind, order in names)]
            for i, n in enumerate(found["tokens"])
        ],
    )


def entropy(found: dict[str, Any]) -> list[str]:
    """Return the table of nats by position, one row a tokenizer and segment of an order."""
    rows = []
    for name in ("selftok", "vqvae"):
        for stride, order in found[name]["orders"].items():
            mean = order["mean"]
            every = [cell(each) for each in (order["unigram"], mean["nats"], mean["gain"])]
            for segment in range(int(stride)):
                part = f", every {stride}nd token, segment {segment + 1}" if stride != "1" else ""
                falls = [cell(order["fall"][kind][segment]) for kind in ("entropy", "nats")]
                rows.append([f"{name}{part}", *(every if not segment else [""] * 3), *falls])
    heads = ["frequencies alone, nats", "prior, nats", "gain of the context"]
    return table(["tokens", *heads, "fall of the entropy", "fall of the nats"], rows)


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


def plan(found: dict[str, Any]) -> list[str]:
    """Return the table of picks that were planned with each cost."""
    better = found["less_than_all_tokens_mm"]
    rows = [
        [name, cell(distance, 1), "" if name == "selftok, all tokens" else cell(better[name], 1)]
        for name, distance in found["distance_mm"].items()
    ]
    return table(["cost", "distance to the goal, mm", "nearer than with all tokens, mm"], rows)


def grpo(found: dict[str, Any]) -> list[str]:
    """Return the table of success before and after GRPO."""
    rows = [
        [name, *(cell(found[name][kind]) for kind in ("before", "after", "gain")),
         f"{found[name]['bound']:.2f}"]
        for name in ("selftok", "vqvae")
    ]  # fmt: skip
    rows.append(["difference", "", "", cell(found["gain_selftok_minus_vqvae"]), ""])
    return table(["tokens", "before", "after", "gain", "of true images"], rows)
