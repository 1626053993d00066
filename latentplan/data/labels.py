"""Labels of an episode as the JSON text that a store keeps: one list an episode."""

from __future__ import annotations

import json
from dataclasses import asdict

from latentplan.errors import ShapeError
from latentplan.types import Episode, Label


def to_text(labels: tuple[Label, ...]) -> str:
    """Return a JSON list of {text, task, start, stop}; "" for no labels."""
    return json.dumps([asdict(label) for label in labels], ensure_ascii=False) if labels else ""


def from_text(text: str) -> tuple[Label, ...]:
    """Return the labels of a text; ValueError or TypeError if it is not one of `to_text`."""
    found = tuple(Label(**values) for values in json.loads(text)) if text else ()
    for label in found:
        if [type(value) for value in asdict(label).values()] != [str, str, int, int]:
            raise TypeError(f"{label} is no label")
    return found


def check(episode: Episode) -> None:
    """Raise ShapeError if a label is not text, or covers a part that is not in the episode."""
    for label in episode.labels:
        if any("\ud800" <= letter <= "\udfff" for letter in label.text + label.task):
            raise ShapeError(f"Episode.labels: {label.text!r} is not text that UTF-8 can encode")
        stop = len(episode) if label.stop == -1 else label.stop
        if not 0 <= label.start <= stop <= len(episode):
            raise ShapeError(
                f"Episode.labels: {label.text!r} is from {label.start} to {label.stop}, "
                f"the observations are 0 to {len(episode)}"
            )
