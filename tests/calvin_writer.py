"""A small data set in CALVIN's layout: an arm that wanders, pictures of where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

SEGMENTS = ((358482, 358502), (358510, 358519), (358530, 358530))
WINDOWS = (
    ("open the drawer", "open_drawer", 358484, 358490),
    ("pull the handle", "open_drawer", 358487, 358495),
    ("press the button", "turn_on_led", 358510, 358519),
)


def recording(first: int, last: int, *, seed: int = 0, size: int = 40) -> list[dict]:
    """Return the arrays of frames first to last, with the relations that CALVIN's have."""
    rng = np.random.default_rng([seed, first])
    count = last - first + 1
    steps = rng.normal(size=(count + 1, 6)) * [*[0.012] * 3, *[0.03] * 3]
    poses = np.cumsum(steps, axis=0) + [0, -0.1, 0.5, np.pi - 0.02, 0, 1.5]
    poses[:, 3:] = (poses[:, 3:] + np.pi) % (2 * np.pi) - np.pi  # past pi, as the real ones are
    hand = np.where(rng.random(count + 1) < 0.5, -1.0, 1.0)
    frames = []
    for t in range(count):
        target, seen = poses[t + 1], poses[t]
        turn = (target[3:] - seen[3:] + np.pi) % (2 * np.pi) - np.pi
        place = np.clip(target[:3] - seen[:3], -0.02, 0.02) / 0.02
        relative = np.concatenate([place, np.clip(turn, -0.05, 0.05) / 0.05])
        picture = np.full((size, size, 3), 60, np.uint8)
        row, column = ((poses[t, :2] * 0.8 + 0.5).clip(0, 0.9) * size).astype(int)
        picture[row : row + 4, column : column + 4] = (220, t % 256, 40)
        picture[: size // 4] = rng.integers(0, 256, (size // 4, size, 3))
        frames.append(
            {
                "actions": np.append(target, hand[t]),
                "rel_actions": np.append(relative, hand[t]),
                "robot_obs": np.concatenate([seen, [0.04], rng.normal(size=7), [hand[t - 1]]]),
                "scene_obs": rng.normal(size=24),
                "rgb_static": picture,
                "rgb_gripper": picture[: size // 2, : size // 2].copy(),
                "rgb_tactile": np.repeat(picture[:, : size // 2], 2, axis=2),
                "depth_static": picture[..., 0].astype(np.float32) / 100,
                "depth_tactile": picture[:, : size // 2, :2].astype(np.float32) / 1e5,
            }
        )
    return frames


def write(
    root: Path,
    *,
    split: str = "training",
    segments: tuple[tuple[int, int], ...] = SEGMENTS,
    windows: tuple[tuple[str, str, int, int], ...] = WINDOWS,
    seed: int = 0,
) -> Path:
    """Write a split below `root` and return `root`."""
    folder = root / split
    (folder / "lang_annotations").mkdir(parents=True)
    for first, last in segments:
        for number, frame in enumerate(recording(first, last, seed=seed), start=first):
            np.savez_compressed(folder / f"episode_{number:07d}.npz", **frame)
    np.save(folder / "ep_start_end_ids.npy", np.array(segments))
    np.save(folder / "ep_lens.npy", np.array([last - first + 1 for first, last in segments]))
    scenes = {"calvin_scene_D": [segments[0][0], segments[-1][1]]}
    np.save(folder / "scene_info.npy", np.array(scenes, object), allow_pickle=True)
    save_language(folder / "lang_annotations", windows)
    normaliser = {"_target_": "calvin_agent.NormalizeVector", "mean": [0.0] * 15, "std": [1.0] * 15}
    bounds = {"act_min_bound": [-4.0] * 7, "act_max_bound": [4.0] * 7}
    statistics = {"robot_obs": [normaliser], **bounds}
    (folder / "statistics.yaml").write_text(yaml.safe_dump(statistics))
    return root


def save_language(folder: Path, windows: tuple[tuple[str, str, int, int], ...]) -> None:
    """Write the annotations as CALVIN does: a dictionary in an array of one object."""
    texts, tasks, starts, stops = zip(*windows, strict=True) if windows else ((), (), (), ())
    language = {"ann": list(texts), "task": list(tasks), "emb": np.zeros((len(texts), 1, 8), "f4")}
    info = {"episodes": [], "indx": list(zip(starts, map(np.int64, stops), strict=True))}
    content = np.array({"language": language, "info": info}, object)
    np.save(folder / "auto_lang_ann.npy", content, allow_pickle=True)
