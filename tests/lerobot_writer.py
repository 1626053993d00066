"""Data sets in the layout that LeRobot 0.4.4 writes."""

import io
import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

FPS, LENGTHS, FILES = 20, (5, 7, 6), (0, 0, 1)  # frames of an episode, and the file that it is in
TASKS = {"open the drawer": 0, "push it": 1}


def frame(episode, t, size=64):
    """Return a picture that only this frame has: bands whose grey says episode and time."""
    picture = np.full((size, size, 3), 40 + 60 * episode, np.uint8)
    picture[8 * (t % 8) : 8 * (t % 8) + 8] = 230
    return picture


def state(episode):
    return np.random.default_rng(episode).normal(size=(LENGTHS[episode], 4)).astype(np.float32)


def action(episode):
    return np.random.default_rng(10 + episode).uniform(-1, 1, (LENGTHS[episode], 3))


def png(picture):
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": "frame-000000.png"}


def write_video(path, pictures, drop=()):
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "1", "g": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for place, picture in enumerate(pictures):
            if place in drop:
                continue
            shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
            shown.pts, shown.time_base = place, Fraction(1, FPS)
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def dataset(root, *, kind="video", actions=action, drop=()):
    """Write a data set into a new folder and return that; a row group has a whole file's rows."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows, episodes, start = {0: [], 1: []}, [], 0
    shown = {0: [], 1: []}
    for index, (length, file) in enumerate(zip(LENGTHS, FILES, strict=True)):
        for t in range(length):
            rows[file].append(
                {
                    "observation.state": state(index)[t].tolist(),
                    "observation.depth": np.full((2, 3), t, np.float32).tolist(),
                    "note": "left out",
                    "action": actions(index)[t].tolist(),
                    "timestamp": t / FPS,
                    "frame_index": t,
                    "episode_index": index,
                    "index": start + t,
                    "task_index": int(index == 1 and t >= 3),
                }
                | ({"observation.images.top": png(frame(index, t))} if kind == "image" else {})
            )
        about = {"episode_index": index, "tasks": list(TASKS), "length": length}
        about |= {"data/chunk_index": 0, "data/file_index": file}
        about |= {"dataset_from_index": start, "dataset_to_index": start + length}
        before = len(shown[file])
        shown[file] += [frame(index, t) for t in range(length)]
        top = "videos/observation.images.top"
        about |= {f"{top}/chunk_index": 0, f"{top}/file_index": file} if kind == "video" else {}
        if kind == "video":
            about |= {f"{top}/from_timestamp": before / FPS}
            about |= {f"{top}/to_timestamp": len(shown[file]) / FPS}
        about |= {"stats/action/min": [0.0]}
        episodes.append(about)
        start += length
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    schema = pyarrow.Table.from_pylist(rows[0]).schema
    for name, size in (("observation.state", 4), ("action", 3)):
        place = schema.get_field_index(name)
        schema = schema.set(place, pyarrow.field(name, pyarrow.list_(pyarrow.float32(), size)))
    for file, content in rows.items():
        table = pyarrow.Table.from_pylist(content, schema=schema)
        parquet.write_table(table, root / f"data/chunk-000/file-{file:03d}.parquet")
        if kind == "video":
            write_video(root / f"{top}/chunk-000/file-{file:03d}.mp4", shown[file], drop=drop)
    table = pyarrow.Table.from_pylist(episodes)
    parquet.write_table(table, root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = {"task_index": list(TASKS.values()), "__index_level_0__": list(TASKS)}
    parquet.write_table(pyarrow.table(tasks), root / "meta/tasks.parquet")
    number = {"dtype": "float32", "names": None}
    rgb = {"dtype": kind, "shape": [64, 64, 3], "names": ["height", "width", "channels"]}
    pattern = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    info = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "total_episodes": len(LENGTHS),
        "data_path": f"data/{pattern}.parquet",
        "video_path": f"videos/{{video_key}}/{pattern}.mp4",
        "features": {
            "observation.state": number | {"shape": [4]},
            "observation.depth": number | {"shape": [2, 3]},
            "observation.images.top": rgb,
            "note": {"dtype": "string", "shape": [1], "names": None},
            "action": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "grip"]}},
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root
