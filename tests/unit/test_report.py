from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from sighted import Sighted
from toy import ToyEnv

from latentplan.evaluation import report, video
from latentplan.evaluation.goals import Goals
from latentplan.evaluation.metrics import summarise
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing

EPISODES, LENGTH = 3, 8


@pytest.fixture(scope="module")
def trials():
    evaluation = Goals(Goals.Config(length=LENGTH))
    return list(evaluation.trials(Sighted(), ToyEnv(), episodes=EPISODES, seed=0))


@pytest.fixture(scope="module")
def page(trials):
    return report.render(
        trials,
        summarise(trials, seed=0),
        title="a <toy>",
        config="env: toy\n",
        provenance=provenance(),
    )


class Tags(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_report_needs_nothing_else(page):
    for tag, attributes in Tags(page).found:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        for name in ("src", "href", "xlink:href", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value)
    assert not re.search(r"url\(\s*['\"]?(?!#)", page)
    assert "@import" not in page


def test_its_images_are_those_of_the_trials(page, trials):
    sources = [a["src"] for tag, a in Tags(page).found if tag == "img"]
    assert len(sources) == EPISODES * (min(report.STRIP, LENGTH + 1) + 1)
    pictures = []
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        pictures.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))))
    first = trials[0]
    assert np.array_equal(pictures[0], first.attempts["planner"].images[0])
    assert np.array_equal(pictures[report.STRIP - 1], first.attempts["planner"].images[-1])
    assert np.array_equal(pictures[report.STRIP], first.goal)


def test_the_figures_are_shown(page, trials):
    metrics = summarise(trials, seed=0)
    tags = Tags(page)
    for metres in (metrics.start, metrics.final, metrics.random_final, metrics.oracle_best):
        assert f"{100 * metres:.1f}" in tags.text
    assert f"{metrics.progress:.2f}" in tags.text
    assert "a <toy>" in tags.text  # escaped in the source
    assert "torch" in tags.text
    assert len([1 for tag, _ in tags.found if tag == "svg"]) == 2


def test_one_trial_has_a_report_too(trials):
    alone = trials[:1]
    page = report.render(
        alone, summarise(alone, seed=0), title="one", config="", provenance={"created": "now"}
    )
    assert "–" in page  # where an interval would be
    assert "nan" not in Tags(page).text


def test_the_video_shows_every_image(trials, tmp_path):
    path = tmp_path / "video.mp4"
    fps = 4
    count = video.write(path, trials, fps=fps)
    assert count == EPISODES * (LENGTH + 1 + fps)
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    frames = [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader]
    assert len(frames) == count
    assert width % 2 == 0
    assert height % 2 == 0
    assert meta["pix_fmt"].startswith("yuv420p")

    side = 320  # 64 pixels, five times as large
    top, left = video.BAR, video.MARGIN
    shown = frames[LENGTH][top : top + side, left : left + side][2::5, 2::5]
    wanted = trials[0].attempts["planner"].images[-1]
    assert np.abs(shown.astype(int) - wanted).mean() < 6
    right = 2 * video.MARGIN + side
    goal = frames[LENGTH][top : top + side, right : right + side][2::5, 2::5]
    assert np.abs(goal.astype(int) - trials[0].goal).mean() < 6
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def broken():
        with replacing(path) as partial:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left on device"):
        broken()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
