"""The report of an evaluation as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from latentplan.evaluation.goals import Trial
from latentplan.evaluation.metrics import Metrics, predictions
from latentplan.types import Array

COLOURS = {"planner": "#2f7de1", "random": "#d9822b", "noop": "#8a9099", "oracle": "#2f9e5f"}
MEANING = {
    "planner": "the model under test",
    "random": "random actions, as in collection",
    "noop": "no motion",
    "oracle": "scripted expert that reads the simulator's state",
}
STRIP = 7  # images of a trial from start to end, without the goal
SHOWN = 40  # most trials with images, to limit the size of the file
INK = "#0a0b0c"  # placeholder that becomes the text colour of the page


def render(
    trials: Sequence[Trial],
    metrics: Metrics,
    *,
    title: str,
    config: str,
    provenance: Mapping[str, Any],
) -> str:
    """Return the report as HTML with embedded images and curves.

    `config` is the resolved config as YAML; `provenance` are JSON values, shown unchanged.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"cm": _cm, "number": _number, "cm_interval": _cm_interval}
    environment.filters |= {"interval": _interval}
    text = files("latentplan.evaluation").joinpath("report.html.j2").read_text(encoding="utf-8")
    names = list(trials[0].attempts)
    rows = [
        {"name": n, "meaning": MEANING[n], "colour": COLOURS[n]} | _means(trials, n) for n in names
    ]
    return environment.from_string(text).render(
        title=title,
        metrics=metrics,
        rows=rows,
        curves=_curves(trials),
        scatter=_scatter(trials),
        strips=[_strip(t) for t in trials[:SHOWN]],
        config=config,
        provenance=json.dumps(provenance, indent=2),
    )


def _means(trials: Sequence[Trial], name: str) -> dict[str, float]:
    distances = [t.attempts[name].distance for t in trials]
    return {
        "start": float(np.mean([d[0] for d in distances])),
        "final": float(np.mean([d[-1] for d in distances])),
        "best": float(np.mean([d.min() for d in distances])),
    }


def _strip(trial: Trial) -> dict[str, Any]:
    planner = trial.attempts["planner"]
    last = len(planner.distance) - 1
    steps = sorted({round(s) for s in np.linspace(0, last, STRIP)})
    images = []
    if trial.goal is not None:
        for step in steps:
            caption = "start" if step == 0 else "last" if step == last else f"action {step}"
            images.append(
                {
                    "source": _png(planner.images[step]),
                    "caption": caption,
                    "distance": float(planner.distance[step]),
                }
            )
        images.append({"source": _png(trial.goal), "caption": "goal", "distance": None})
    return {
        "images": images,
        "ends": {n: float(a.distance[-1]) for n, a in trial.attempts.items()},
        "start": float(planner.distance[0]),
        "success": planner.success,
    }


def _png(image: Array) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _curves(trials: Sequence[Trial]) -> str:
    """Return an SVG of the mean distance after each action, with 95 % intervals of the mean."""
    figure, axes = _axes()
    length = max(len(a.distance) for t in trials for a in t.attempts.values())
    for name, colour in COLOURS.items():
        # An episode that the env ended early keeps its last distance.
        distance = 100 * np.stack(
            [
                np.pad(d, (0, length - len(d)), mode="edge")
                for d in (t.attempts[name].distance for t in trials)
            ]
        )
        mean = distance.mean(0)
        axes.plot(mean, color=colour, label=name, linewidth=2 if name == "planner" else 1.3)
        if len(trials) > 1:
            half = 1.96 * distance.std(0, ddof=1) / math.sqrt(len(trials))
            axes.fill_between(
                range(length), mean - half, mean + half, color=colour, alpha=0.15, linewidth=0
            )
    axes.set(xlabel="actions", ylabel="distance to the goal, cm", xlim=(0, length - 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=INK, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    return _svg(figure)


def _scatter(trials: Sequence[Trial]) -> str:
    """Return an SVG of the distance after an action over its predicted cost."""
    figure, axes = _axes()
    states = [s for t in trials for s in t.candidates]
    if states:
        axes.scatter(
            np.concatenate([s.predicted for s in states]),
            100 * np.concatenate([s.realised for s in states]),
            color=COLOURS["noop"],
            label="executed candidates",
            s=14,
            alpha=0.55,
            linewidth=0,
        )
    pairs = predictions(trials) or [(np.empty(0), np.empty(0))]
    axes.scatter(
        np.concatenate([predicted for predicted, _ in pairs]),
        100 * np.concatenate([distance for _, distance in pairs]),
        color=COLOURS["planner"],
        label="actions taken",
        s=14,
        alpha=0.55,
        linewidth=0,
    )
    axes.set(xlabel="predicted cost", ylabel="distance after the action, cm")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=INK, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    return _svg(figure)


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(color=INK, alpha=0.1, linewidth=0.6)
    return figure, axes


def _svg(figure: Any) -> str:
    """Return the figure as an SVG element with the text colour and font of the page."""
    import matplotlib

    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "latentplan"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _interval(values: tuple[float, float]) -> str:
    return " to ".join(_number(v) for v in values) if math.isfinite(values[0]) else "–"


def _cm(metres: float) -> str:
    return f"{100 * metres:.1f}" if math.isfinite(metres) else "–"


def _cm_interval(metres: tuple[float, float]) -> str:
    return " to ".join(_cm(v) for v in metres) if math.isfinite(metres[0]) else "–"
