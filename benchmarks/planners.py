"""Measure time and cost of a solve, compared with other packages and with bare matrix products.

    python benchmarks/planners.py --quick
    python benchmarks/planners.py --batch 1,16 --json benchmarks/planners.json --plot planners.png

Peers are optional: pip install "latentplan[benchmarks]".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from latentplan import registry
from latentplan.errors import ConfigError, MissingDependency, check_range
from latentplan.files import replacing

if TYPE_CHECKING:
    from planner_toy import Toy
    from torch import Tensor

ITERATIONS = 5
WITH_ELITES = ("categorical", "cem", "hybrid", "icem")
CURVE = (1, 2, 3, 5, 8, 12)  # iterations of the curve of cost over time
QUICK = (1, 3, 5, 8)
# Settings whose defaults suit other problems. Elites are 10 %, as for peers. Gradient planners need
# few candidates, so that theirs do not follow the cell.
SETTINGS: dict[str, dict[str, Any]] = {
    "cem": {"locality": 0.0, "momentum": 0.0, "std_min": 0.01},
    "icem": {"beta": 0.5, "std_min": 0.01},
    "gradient": {"candidates": 32, "restarts": 2, "rate": 0.2, "decay": 0.97},
    "hybrid": {"candidates": 32, "elites": 4, "locality": 0.0, "momentum": 0.0}
    | {"polished": 4, "rate": 0.2, "decay": 0.97},
}


@dataclass(frozen=True)
class Case:
    """A cell of the table: a problem size and a budget."""

    candidates: int
    horizon: int
    batch: int
    iterations: int
    dtype: str
    device: str
    threads: int


@dataclass(frozen=True)
class Entry:
    """A planner that is timed in a cell."""

    planner: str
    source: str  # latentplan, or the name of the peer
    case: Case
    problem: Toy
    solve: Callable[[int], Tensor]  # seed -> actions (B, H, A)
    start: str = "cold"  # or "warm", from the plan of the previous step


def run(
    *,
    quick: bool = False,
    candidates: Sequence[int] = (64, 512, 2048),
    horizons: Sequence[int] = (10,),
    batches: Sequence[int] = (1, 16),
    dtypes: Sequence[str] = ("float32",),
    device: str = "cpu",
    planners: Sequence[str] = (),
    threads: int = 1,
    repeats: int = 15,
    out: str | Path | None = None,
    plot: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Time planners on a toy problem; return the rows, and write them as JSON and as a plot.

    Planners of a cell are timed alternately, so that other load affects all alike: compare ratios.
    """
    import torch

    from latentplan.planning.precision import DTYPES

    for name, values in (("candidates", candidates), ("horizon", horizons), ("batch", batches)):
        for value in values:
            check_range(name, value, 1)
    check_range("threads", threads, 1)
    check_range("repeats", repeats, 1)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingDependency(f"device {device}: no CUDA device is visible")
    classes = {n: registry.get("planner", n) for n in planners or sorted(registry.names("planner"))}
    names = list(classes)
    if quick:
        candidates, batches, repeats = (64, 512), (1,), min(repeats, 3)
    cells = [
        Case(n, h, b, ITERATIONS, dtype, device, threads)
        for h, b, n, dtype in product(horizons, batches, candidates, dtypes)
    ]
    curve = QUICK if quick else CURVE
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows = list(_rows(names, cells, curve, repeats))
    finally:
        torch.set_num_threads(before)
    _print(rows)
    if out is not None:
        write(Path(out), rows)
    if plot is not None:
        draw(rows, Path(plot))
    return rows


def _rows(
    names: Sequence[str], cells: Sequence[Case], curve: Sequence[int], repeats: int
) -> Iterable[dict[str, Any]]:
    from latentplan.commands.progress import track

    smallest = min(case.batch for case in cells)
    sizes = sorted({case.candidates for case in cells})
    middle = sizes[len(sizes) // 2]
    with track(len(cells), "planners", "cells") as bar:
        for case in cells:
            drawn = (case.batch, case.candidates) == (smallest, middle)
            yield from _cell(names, case, curve if drawn else (), repeats)
            bar.advance()


def _cell(
    names: Sequence[str], case: Case, curve: Sequence[int], repeats: int
) -> Iterable[dict[str, Any]]:
    """Yield the rows of all planners of a cell, timed alternately on new problems each time."""
    import torch
    from planner_toy import ACTION, Toy

    from latentplan.planning.solver import shift

    cold, warm = (Toy(batch=case.batch, horizon=case.horizon, device=case.device) for _ in range(2))
    rest = torch.zeros(case.batch, case.horizon, ACTION, device=case.device)
    entries = [_ours(name, cold, case) for name in names]
    entries += _peers(cold, case)
    for iterations in curve:
        each = replace(case, iterations=iterations)
        if iterations != case.iterations:
            entries += [_ours(name, cold, each) for name in names]
            entries += _peers(cold, each, fast=False) if case.batch == 1 else []
        entries += [_ours(name, warm, each, rest) for name in names]
        if case.batch == 1 or iterations == case.iterations:
            entries += _peers(warm, each, rest, fast=False)
    guide = _ours("cem", warm, replace(case, dtype="float32"))
    seconds: list[list[float]] = [[] for _ in entries]
    costs: list[list[float]] = [[] for _ in entries]
    floors = []
    for turn in range(repeats + 1):
        cold.become(turn)
        warm.become(turn)
        if curve:  # one action later, from the rest of the plan
            plan = guide.solve(turn)
            warm.move(plan)
            rest.copy_(shift(plan, 1))
        floors.append(_floor(case))
        for entry, took, cost in zip(entries, seconds, costs, strict=True):
            start = perf_counter()
            actions = entry.solve(turn)
            _wait(case.device)
            took.append(perf_counter() - start)
            cost.append(entry.problem.cost(actions))
    floor = _quantile(floors[1:], 0.5)
    for entry, took, cost in zip(entries, seconds, costs, strict=True):
        yield {
            "planner": entry.planner,
            "source": entry.source,
            **asdict(entry.case),
            "start": entry.start,
            "curve": bool(curve),
            "p50_ms": round(1e3 * _quantile(took[1:], 0.5), 3),  # the first solve is a warm-up
            "p90_ms": round(1e3 * _quantile(took[1:], 0.9), 3),
            "p99_ms": round(1e3 * _quantile(took[1:], 0.99), 3),
            "cost": round(sum(cost[1:]) / repeats, 4),
            "floor_ms": round(1e3 * floor * entry.case.iterations, 3),
        }


def _ours(name: str, problem: Toy, case: Case, warm_start: Tensor | None = None) -> Entry:
    """Return a planner of latentplan with the settings of a case."""
    import torch

    from latentplan.planning.graph import Captured
    from latentplan.planning.precision import DTYPES

    planner_class = registry.get("planner", name)
    given = {"candidates": case.candidates} | SETTINGS.get(name, {})
    given |= {"iterations": case.iterations, "horizon": case.horizon, "hold": False}
    if name in WITH_ELITES:
        given.setdefault("elites", max(1, given["candidates"] // 10))
    solver = planner_class(planner_class.Config(**given))
    if case.device.startswith("cuda"):
        solver = Captured(solver)
    dtype = DTYPES[case.dtype]
    model: Any = problem.model if dtype == torch.float32 else deepcopy(problem.model).to(dtype)
    generator = torch.Generator(case.device)
    objective, space = problem.objective, problem.space

    def solve(seed: int) -> Tensor:
        plan = solver.plan(
            problem.context(dtype),
            model,
            objective=objective,
            space=space,
            generator=generator.manual_seed(seed),
            warm_start=warm_start,
        )
        actions: Tensor = plan.actions
        return actions

    start = "cold" if warm_start is None else "warm"
    return Entry(
        name, "latentplan", replace(case, candidates=given["candidates"]), problem, solve, start
    )


def _peers(
    problem: Toy, case: Case, warm_start: Tensor | None = None, *, fast: bool = True
) -> list[Entry]:
    """Return the installed peers that support the problems and dtype of a case."""
    import planner_peers as peers

    found = peers.installed() if case.dtype == "float32" else {}
    setting = {"candidates": case.candidates, "iterations": case.iterations}
    start = "cold" if warm_start is None else "warm"
    made = []
    if "stable-worldmodel" in found:
        sizes = tuple(dict.fromkeys((1, case.batch)))
        rollouts = (False, True) if fast else (False,)
        for kind, ours, size in product(("cem", "icem", "mppi"), rollouts, sizes):
            name = kind + (", our rollout" if ours else "")
            name += f", {size} at once" if case.batch > 1 else ""
            solve = peers.stable_worldmodel(
                kind, problem, **setting, batch_size=size, fast=ours, warm_start=warm_start
            )
            made.append(Entry(name, "stable-worldmodel", case, problem, solve, start))
    if "pytorch-mppi" in found:
        solve = peers.pytorch_mppi(problem, **setting, warm_start=warm_start)
        made.append(Entry("mppi", "pytorch-mppi", case, problem, solve, start))
    return made


def _floor(case: Case) -> float:
    """Return the seconds of one round's matrix products alone, by torch.mm."""
    import torch
    from planner_toy import ACTION, HIDDEN, LATENT

    from latentplan.planning.precision import DTYPES

    dtype, rows = DTYPES[case.dtype], case.candidates
    sizes = (LATENT + ACTION, *HIDDEN, LATENT)
    shapes = list(zip(sizes, sizes[1:], strict=False))
    with torch.inference_mode():
        given = [torch.randn(rows, n, dtype=dtype, device=case.device) for n, _ in shapes]
        weights = [torch.randn(n, m, dtype=dtype, device=case.device) for n, m in shapes]
        products = [x @ weight for x, weight in zip(given, weights, strict=True)]
        _wait(case.device)
        start = perf_counter()
        for _ in range(case.batch * case.horizon):
            for x, weight, out in zip(given, weights, products, strict=True):
                torch.mm(x, weight, out=out)
        _wait(case.device)
        return perf_counter() - start


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def _quantile(values: Sequence[float], share: float) -> float:
    import numpy as np

    return float(np.quantile(values, share))


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    columns = ("candidates", "batch", "dtype", "start", "planner", "source", "p50 ms", "floor x")
    for column in (*columns, "cost"):
        table.add_column(column, justify="left" if column in columns[2:6] else "right")
    for row in rows:
        if row["iterations"] != ITERATIONS:
            continue  # of the curve
        ratio = row["p50_ms"] / row["floor_ms"]
        table.add_row(
            *(str(row[column]) for column in columns[:6]),
            f"{row['p50_ms']:.2f}",
            f"{ratio:.2f}",
            f"{row['cost']:.3f}",
        )
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    print(
        f"{ITERATIONS} iterations; cost after them, low is good; floor: the matrix products alone"
    )
    for line in race(rows):
        print(line)


def race(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the time in which our planners reach the final cost of stable-worldmodel's CEM.

    There is a line for a cold and one for a warm start, if their curves were measured.
    """
    lines = []
    for start in ("cold", "warm"):
        curves = _curves(row for row in rows if row["start"] == start)
        marks = [
            row
            for (source, name), curve in curves.items()
            for row in curve
            if source == "stable-worldmodel"
            and name.split(",")[0] == "cem"
            and "our rollout" not in name
            and row["iterations"] == ITERATIONS
        ]
        if not marks:
            continue
        mark = min(marks, key=lambda row: row["p50_ms"])  # its fastest batch size
        ratios = {}
        for (source, name), curve in curves.items():
            reached = [row["p50_ms"] for row in curve if row["cost"] <= mark["cost"]]
            if source == "latentplan" and reached:
                ratios[name] = min(reached) / mark["p50_ms"]
        shares = (f"{name} {ratios[name]:.2f}" for name in sorted(ratios, key=lambda k: ratios[k]))
        lines.append(
            f"{start} start: stable-worldmodel's CEM has cost {mark['cost']:.3f} after "
            f"{mark['p50_ms']:.1f} ms; ours reach it in this share of that time: "
            + ", ".join(shares)
        )
    return lines


def _curves(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the rows of each planner in the cell whose curve was measured."""
    curves: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["curve"]:
            curves.setdefault((row["source"], row["planner"]), []).append(row)
    return {key: sorted(curve, key=lambda row: row["p50_ms"]) for key, curve in curves.items()}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows as a JSON list: whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the cost over time, one curve per planner, for a cold and a warm start."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for axis, start in zip(axes, ("cold", "warm"), strict=True):
        for (source, planner), curve in _curves(r for r in rows if r["start"] == start).items():
            if len(curve) < 2:
                continue
            ours = source == "latentplan"
            axis.plot(
                [row["p50_ms"] for row in curve],
                [row["cost"] for row in curve],
                marker="." if ours else "x",
                linestyle="-" if ours else "--",
                label=planner if ours else f"{planner} ({source})",
            )
        axis.set(xscale="log", xlabel="ms (median of a solve)", title=f"{start} start")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cost (mean squared latent distance)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.set_layout_engine("constrained")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format=path.suffix[1:] or "png")
    plt.close(figure)


def numbers(text: str) -> list[int]:
    """Return the integers of a text such as 64,512."""
    return [int(each) for each in text.split(",") if each]


def words(text: str) -> list[str]:
    """Return the words of a comma-separated text."""
    return [each for each in text.split(",") if each]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the cells of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a part of the table, in seconds")
    parser.add_argument("--candidates", type=numbers, default=[64, 512, 2048])
    parser.add_argument("--horizon", dest="horizons", type=numbers, default=[10])
    parser.add_argument(
        "--batch", dest="batches", type=numbers, default=[1, 16], help="problems at once"
    )
    parser.add_argument(
        "--dtype", dest="dtypes", type=words, default=["float32"],
        help="of rollouts: float32, tf32, bfloat16, float16",
    )  # fmt: skip
    parser.add_argument("--planners", type=words, default=[], help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, for all alike")
    parser.add_argument("--repeats", type=int, default=15, help="solves of each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", dest="out", help="file for the rows, as a JSON list")
    parser.add_argument("--plot", help="image of cost against milliseconds to write")
    run(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
