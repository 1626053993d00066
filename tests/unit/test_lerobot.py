"""LeRobot's v3 data sets: written here as LeRobot 0.4.4 does, read; and stores exported."""

import json
import subprocess
import sys

import numpy as np
import pytest
from lerobot_writer import LENGTHS, action, dataset, frame, state

from latentplan.cli import main
from latentplan.data.export import lerobot as export
from latentplan.data.export import statistics
from latentplan.data.sources.lerobot import Lerobot
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, SourceError, StoreError
from latentplan.types import ActionSpec, ArraySpec, Convention, Episode, Label, Spec

pytest.importorskip("av")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

@pytest.mark.parametrize("kind", ["image", "video"])
def test_every_episode_has_its_own_frames_of_shared_files(tmp_path, kind):
    source = Lerobot(dataset(tmp_path / "d", kind=kind))
    assert len(source) == 3
    for index in (2, 0, 1):
        episode = source.episode(index)
        np.testing.assert_array_equal(episode.observations["state"], state(index))
        wanted = action(index).astype(np.float32)[:-1]
        np.testing.assert_array_equal(episode.actions, wanted)
        assert episode.observations["depth"][:, 1, 2].tolist() == list(range(LENGTHS[index]))
        pictures = np.stack([frame(index, t) for t in range(LENGTHS[index])])
        error = np.abs(episode.observations["top"].astype(int) - pictures)
        assert error.max() == 0 if kind == "image" else error.max() <= 4
        assert episode.truncated and not episode.terminated
    assert source.spec.dt == 0.05
    assert source.spec.action.meaning == "motors: x, y, grip"
    assert source.spec.observation["depth"] == ArraySpec((2, 3), "float32")


def test_files_of_macos_do_not_disturb(tmp_path):
    path = dataset(tmp_path / "d", kind="image")
    for file in [*path.rglob("*.parquet"), *path.rglob("*.json")]:
        for name in (f"._{file.name}", ".DS_Store"):
            (file.parent / name).write_bytes(b"\0\5\x16\7")
    assert len(Lerobot(path).episode(2).actions) == LENGTHS[2] - 1


def test_stretches_of_a_task_become_labels(tmp_path):
    source = Lerobot(dataset(tmp_path / "d", kind="image"))
    assert source.episode(0).labels == (Label("open the drawer"),)
    split = (Label("open the drawer", stop=2), Label("push it", start=3))
    assert source.episode(1).labels == split


def test_bounds_are_the_datas(tmp_path):
    spec = Lerobot(dataset(tmp_path / "d", kind="image")).spec
    every = np.concatenate([action(i) for i in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(spec.action.low, every.min(0))
    np.testing.assert_array_equal(spec.action.high, every.max(0))


def test_cameras_are_chosen(tmp_path):
    root = dataset(tmp_path / "d")
    assert set(Lerobot(root, Lerobot.Config(cameras=("top",))).spec.observation) >= {"top"}
    with pytest.raises(SourceError, match=r"Lerobot.cameras: no camera .*did you mean 'top'"):
        Lerobot(root, Lerobot.Config(cameras=("tip",)))


def test_a_v2_set_is_answered_with_the_converter(tmp_path):
    root = dataset(tmp_path / "d", kind="image")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(SourceError, match=r"is a LeRobot v2\.1 .*convert_dataset_v21_to_v30"):
        Lerobot(root)
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v4.0"}))
    with pytest.raises(SourceError, match=r"'v4\.0' is unknown"):
        Lerobot(root)


def test_a_folder_without_a_whole_data_set_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no such folder"):
        Lerobot(tmp_path / "none")
    with pytest.raises(SourceError, match=r"has no meta/info\.json"):
        Lerobot(tmp_path)
    root = dataset(tmp_path / "d")
    video = root / "videos/observation.images.top/chunk-000/file-001.mp4"
    video.rename(tmp_path / "away.mp4")
    source = Lerobot(root)
    with pytest.raises(SourceError, match=r"file-001\.mp4: no such file"):
        source.episode(2)
    assert len(source.episode(0)) == 4  # what was downloaded is read
    assert len(Lerobot(root, keys=["state"]).episode(2)) == 5
    (root / "meta/info.json").write_text('{"codebase_version": "v3.0", "fps": 20}')
    with pytest.raises(SourceError, match=r"info\.json: has no features"):
        Lerobot(root)


def test_a_part_of_a_data_set_is_read(tmp_path):
    root = dataset(tmp_path / "d", kind="image")
    whole = Lerobot(root)
    (root / "data/chunk-000/file-000.parquet").unlink()
    source = Lerobot(root)
    for index in (0, 1):
        with pytest.raises(SourceError, match=r"file-000\.parquet: no such file"):
            source.episode(index)
    np.testing.assert_array_equal(source.episode(2).actions, whole.episode(2).actions)
    rows = parquet.read_table(root / "meta/episodes/chunk-000/file-000.parquet")
    parquet.write_table(rows.slice(2), root / "meta/episodes/chunk-000/file-000.parquet")
    source = Lerobot(root)  # meta/episodes may start with any number
    assert len(source) == 1
    np.testing.assert_array_equal(source.episode(0).actions, whole.episode(2).actions)


@pytest.mark.parametrize("order", [[0, 1, 3, 2, 4], [0, 1, 5, 2, 3, 4]])
def test_frames_that_are_not_in_order_are_refused(tmp_path, order):
    root = dataset(tmp_path / "d", kind="image")
    file = root / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(file)
    rest = [row for row in range(len(table)) if row not in order]
    parquet.write_table(table.take(order + rest), file)
    with pytest.raises(SourceError, match="are not (in the order of frame_index|together)"):
        Lerobot(root).episode(0)


def test_a_pattern_that_leads_out_of_the_folder_is_refused(tmp_path):
    root = dataset(tmp_path / "d", kind="image")
    info = json.loads((root / "meta/info.json").read_text())
    for pattern in (
        "/etc/{chunk_index}",
        "../{chunk_index:03d}",
        "a/{file_index.__class__}",
        "{chunk_index:9999999999d}",
        "",
    ):
        (root / "meta/info.json").write_text(json.dumps(info | {"data_path": pattern}))
        with pytest.raises(SourceError, match=r"info\.json: data_path is .*need a path below"):
            Lerobot(root)


def test_a_video_that_is_a_playlist_is_not_followed(tmp_path):
    root = dataset(tmp_path / "d")
    video = root / "videos/observation.images.top/chunk-000/file-001.mp4"
    video.rename(tmp_path / "other.mp4")
    for text in (
        f"ffconcat version 1.0\nfile {tmp_path}/other.mp4\n",
        f"#EXTM3U\n#EXTINF:1,\nfile://{tmp_path}/other.mp4\n",
    ):
        video.write_text(text)
        with pytest.raises(SourceError, match=r"file-001\.mp4: damaged, or not a video"):
            Lerobot(root).episode(2)


def test_the_sentences_of_tasks_are_found(tmp_path):
    """By the column's name, not its place; in meta/episodes without a table of tasks."""
    root, tasks = dataset(tmp_path / "d", kind="image"), tmp_path / "d/meta/tasks.parquet"
    import pyarrow

    sentences = ["open the drawer", "push it"]
    number = {"task_index": [0, 1]}
    for column in ("task", "__index_level_0__"):
        table = {"category": ["a", "b"], **number, "note": ["c", "d"], column: sentences}
        parquet.write_table(pyarrow.table(table), tasks)
        assert Lerobot(root).episode(0).labels == (Label("open the drawer"),)
    parquet.write_table(pyarrow.table({"sentence": sentences, **number, "n": [1.0, 2]}), tasks)
    assert Lerobot(root).episode(0).labels == (Label("open the drawer"),)
    parquet.write_table(pyarrow.table({"a": sentences, "b": sentences, **number}), tasks)
    with pytest.raises(SourceError, match="tasks.parquet: found the columns a, b, task_index, nee"):
        Lerobot(root)
    parquet.write_table(pyarrow.table({"task": ["x"], "task_index": [5]}), tasks)
    with pytest.raises(SourceError, match="tasks.parquet: has no task 0, which episode 0 names"):
        Lerobot(root).episode(0)
    tasks.unlink()
    source = Lerobot(root)
    assert source.episode(0).labels == (Label("open the drawer"), Label("push it"))
    assert source.notes == []
    episodes = root / "meta/episodes/chunk-000/file-000.parquet"
    parquet.write_table(parquet.read_table(episodes).drop_columns("tasks"), episodes)
    assert Lerobot(root).notes == [f"{root}: records no tasks, so episodes have no labels"]


def test_features_that_no_store_holds_are_left_out_with_a_note(tmp_path):
    root = dataset(tmp_path / "d", kind="image")
    info = json.loads((root / "meta/info.json").read_text())
    depth = {"dtype": "video", "shape": [64, 64, 1], "info": {"video.is_depth_map": True}}
    info["features"] |= {
        "observation.images.depth": depth,
        "observation.nothing": {"dtype": "float32", "shape": [0]},
        "observation.text": {"dtype": "string", "shape": [1]},
        "observation.odd": {"dtype": 3},
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    source = Lerobot(root)
    assert list(source.spec.observation) == ["state", "depth", "top"]
    assert len(source.notes) == 4 and "'text' is left out: it holds 'string'" in source.notes[2]
    for key, why in {"observation.images.depth": "a video of depths", "nothing": "no num"}.items():
        with pytest.raises(ConfigError, match=f"'{key}' cannot be read: it .*{why}"):
            Lerobot(root, keys=[key])


def test_a_truncated_table_is_named(tmp_path):
    root = dataset(tmp_path / "d", kind="image")
    table = root / "data/chunk-000/file-001.parquet"
    table.write_bytes(table.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"file-001\.parquet: damaged"):
        Lerobot(root).episode(2)
    assert len(Lerobot(root).episode(1)) == 6


def test_the_paths_beside_images_are_not_read(tmp_path):
    root = dataset(tmp_path / "d", kind="image")
    path = root / "data/chunk-000/file-001.parquet"
    table, name = parquet.read_table(path), "observation.images.top"
    column, count = table[name].combine_chunks(), LENGTHS[2]
    ends = pyarrow.py_buffer(np.arange(count + 1, dtype=np.int32))
    no_text = pyarrow.Array.from_buffers(
        pyarrow.string(), count, [None, ends, pyarrow.py_buffer(b"\xff" * count)]
    )
    images = pyarrow.StructArray.from_arrays([column.field("bytes"), no_text], ["bytes", "path"])
    place = table.schema.get_field_index(name)
    parquet.write_table(table.set_column(place, name, images), path)
    top = Lerobot(root).episode(2).observations["top"]
    np.testing.assert_array_equal(top[3], frame(2, 3))
    parquet.write_table(table.set_column(place, name, no_text), path)
    with pytest.raises(SourceError, match=f"{name}: holds string, need images"):
        Lerobot(root).episode(2)


FLIPPED = """
import sys
from pathlib import Path
from latentplan.data.sources import lerobot_files
from latentplan.errors import LatentplanError
path = Path(sys.argv[1])
content, last = path.read_bytes(), Path(sys.argv[2])
read = 0
for place in range(int.from_bytes(content[-8:-4], "little")):
    at = len(content) - 9 - place
    path.write_bytes(content[:at] + bytes([content[at] ^ 2]) + content[at + 1 :])
    last.write_text(str(at))
    try:
        lerobot_files._table(path)
        read += 1
    except LatentplanError:
        pass
print(read)
"""


def test_no_damage_of_the_footer_of_a_table_ends_the_process(tmp_path):
    table = pyarrow.table({"a": [[1.0, 2.0], [3.0]], "b": ["x", "y"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    argv = [sys.executable, "-c", FLIPPED, str(tmp_path / "a.parquet"), str(tmp_path / "last")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"byte {(tmp_path / 'last').read_text()}: {done.stderr[-300:]}"
    assert int(done.stdout) > 10  # some damage does not show


def test_a_truncated_video_is_named_and_the_other_episodes_are_read(tmp_path):
    root = dataset(tmp_path / "d")
    video = root / "videos/observation.images.top/chunk-000/file-001.mp4"
    video.write_bytes(video.read_bytes()[:400])
    source = Lerobot(root)
    with pytest.raises(SourceError, match=r"file-001\.mp4: damaged"):
        source.episode(2)
    assert len(source.episode(1)) == 6


def test_a_frame_that_is_missing_in_a_video_is_not_replaced_by_its_neighbour(tmp_path):
    source = Lerobot(dataset(tmp_path / "d", drop=(2, 11)))
    with pytest.raises(SourceError, match=r"has no frame at 0\.1000 s; the next one is at 0\.15"):
        source.episode(0)
    with pytest.raises(SourceError, match=r"ends before 0\.5500 s: 6 of 7 frames"):
        source.episode(1)


def test_actions_that_are_no_numbers_spoil_their_episode_alone(tmp_path):
    def spoilt(index):
        return np.full((LENGTHS[1], 3), np.nan) if index == 1 else action(index)

    source = Lerobot(dataset(tmp_path / "d", kind="image", actions=spoilt))
    with pytest.raises(SourceError, match=r"file-000\.parquet: episode 1, action: 21 of 21"):
        source.episode(1)
    assert len(source.episode(2)) == 5
    assert np.isfinite(source.spec.action.low).all()


def test_actions_of_another_size_are_refused(tmp_path):
    root = dataset(tmp_path / "d", kind="image")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"]["shape"] = [4]
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(SourceError, match=r"action: 36 numbers in 12 rows, need rows of \(4,\)"):
        Lerobot(root)


SPEC = Spec(
    {
        "rgb": ArraySpec((64, 64, 3), "uint8"),
        "robot_obs": ArraySpec((15,), "float64", "tcp, ..."),
        "depth": ArraySpec((4, 5), "float32", "m"),
        "touch": ArraySpec((), "float32"),
        "scene": ArraySpec((3,), "float32"),
    },
    ActionSpec((-1,) * 7, (1,) * 7, "x", Convention("ee_delta", "rotvec", "base", 0.05)),
    env="tabletop",
    privileged=("scene",),
    dt=0.1,
)


def episode(number, length=9):
    rng = np.random.default_rng(number)
    observations = {
        "rgb": np.stack([frame(number, t) for t in range(length + 1)]),
        "robot_obs": rng.normal(size=(length + 1, 15)),
        "depth": rng.random((length + 1, 4, 5), np.float32),
        "touch": rng.random(length + 1, np.float32),
        "scene": rng.random((length + 1, 3), np.float32),
    }
    labels = {
        0: (),
        1: (Label("open the drawer"),),
        2: (Label("reach", stop=3), Label("push", start=4)),
    }
    return Episode(
        observations,
        rng.uniform(-1, 1, (length, 7)).astype(np.float32),
        rng.random(length, np.float32),
        terminated=number == 1,
        truncated=number == 2,
        labels=labels[number],
    )


@pytest.fixture
def store(tmp_path):
    with ZarrStore.create(tmp_path / "a.zarr", SPEC) as store:
        for number in range(3):
            store.append(episode(number, 9 + number))
    return tmp_path / "a.zarr"


@pytest.mark.parametrize("flag", ["--images", "--video"])
def test_a_store_comes_back_from_an_export(tmp_path, store, flag, capsys):
    assert main(["export", "lerobot", str(store), str(tmp_path / "out"), flag]) == 0
    assert "3 episodes, 33 frames at 10 a second" in capsys.readouterr().out
    source = Lerobot(tmp_path / "out")
    assert source.spec == SPEC
    for number in range(3):
        before, after = episode(number, 9 + number), source.episode(number)
        np.testing.assert_array_equal(after.actions, before.actions)
        np.testing.assert_array_equal(after.rewards, before.rewards)
        ends = (before.terminated, before.truncated)
        assert (after.terminated, after.truncated) == ends
        assert after.labels == before.labels
        for key, values in before.observations.items():
            seen = after.observations[key]
            assert seen.dtype == values.dtype
            if key == "rgb" and flag == "--video":
                noise = ((seen.astype(float) - values) ** 2).mean()
                assert 10 * np.log10(255**2 / noise) > 35  # decibel; crf 30
            else:
                np.testing.assert_array_equal(seen, values)


def test_files_end_when_they_are_full(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MIB", 1000)
    out, long = tmp_path / "out", [episode(n, 120) for n in range(3)]
    config = export.Config(data_mib=1, video_mib=1)
    with export.writing(out, SPEC, fps=10, config=config) as writer:
        for each in long:
            writer.append(each)
    assert len(list((out / "data").rglob("*.parquet"))) == 3
    assert len(list((out / "videos").rglob("*.mp4"))) >= 2
    source = Lerobot(out)
    for number, before in enumerate(long):
        after = source.episode(number).observations
        np.testing.assert_array_equal(after["depth"], before.observations["depth"])
        assert np.abs(after["rgb"].astype(float) - before.observations["rgb"]).mean() < 5


def test_an_export_says_what_lerobot_needs(tmp_path, store):
    out = tmp_path / "out"
    assert main(["export", "lerobot", str(store), str(out), "--images", "--fps", "25"]) == 0
    info = json.loads((out / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 25
    assert info["total_frames"] == 33 and info["splits"] == {"train": "0:3"}
    assert "privileged.scene" in info["features"]
    assert "observation.scene" not in info["features"]
    table = out / "data/chunk-000/file-000.parquet"
    kinds = {field.name: str(field.type) for field in parquet.read_schema(table)}
    assert kinds["action"] == "fixed_size_list<element: float>[7]"
    assert kinds["observation.images.rgb"] == "struct<bytes: binary, path: string>"
    assert kinds["observation.touch"] == "float" and kinds["episode_index"] == "int64"
    rows = parquet.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_to_index"] for row in rows] == [10, 21, 33]
    assert rows[2]["tasks"] == ["push", "reach"]
    stats = json.loads((out / "meta/stats.json").read_text())
    assert np.shape(stats["observation.images.rgb"]["mean"]) == (3, 1, 1)
    assert np.shape(stats["action"]["q99"]) == (7,) and stats["action"]["count"] == [33]
    assert list((tmp_path).glob(".*partial*")) == []


def test_statistics_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    parts = [rng.normal(n, 1 + n, (50 + 10 * n, 4)) for n in range(3)]
    together = statistics.of_all([statistics.of_numbers(part) for part in parts])
    whole = statistics.of_numbers(np.concatenate(parts))
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(together[name], whole[name])
    pictures = rng.integers(0, 256, (20, 8, 9, 3), np.uint8)
    found, flat = statistics.of_images(pictures), pictures.reshape(-1, 3) / 255
    for name, wanted in {"min": flat.min(0), "mean": flat.mean(0), "std": flat.std(0)}.items():
        np.testing.assert_allclose(found[name].ravel(), wanted)
    inverted = np.quantile(flat, 0.9, axis=0, method="inverted_cdf")
    np.testing.assert_allclose(found["q90"].ravel(), inverted)


def test_an_export_that_cannot_be_is_refused_and_leaves_nothing(tmp_path, store, monkeypatch):
    out = tmp_path / "out"
    untimed = tmp_path / "untimed.zarr"
    with ZarrStore.create(untimed, Spec(SPEC.observation, SPEC.action)) as other:
        other.append(episode(0))
    assert main(["export", "lerobot", str(untimed), str(out)]) == 2
    assert main(["export", "lerobt", str(store), str(out)]) == 2
    assert main(["export", "lerobot", str(store), str(out), "codec=vhs"]) == 2
    assert main(["export", "lerobot", str(store), str(store)]) == 2
    with pytest.raises(ConfigError, match=r"3\.33333 steps a second, not a whole number"):
        export.whole_fps(Spec(SPEC.observation, SPEC.action, dt=0.3))
    with pytest.raises(StoreError, match="no episode"), export.writing(out, SPEC, fps=10):
        pass
    odd = Spec({"rgb": ArraySpec((63, 64, 3), "uint8")}, SPEC.action)
    pictures = np.zeros((10, 63, 64, 3), np.uint8)
    small = Episode({"rgb": pictures}, episode(0).actions, episode(0).rewards)
    with pytest.raises(ConfigError, match=r"63 x 64 \(sides must be even\); export images"):
        with export.writing(out, odd, fps=10) as writer:
            writer.append(small)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["a.zarr", "untimed.zarr"]
