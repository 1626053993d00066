"""Randomisation: what is drawn, what it does, that it can be gone back to, that it is stored."""

import dataclasses

import numpy as np
import pytest

from latentplan.api.collect import collect
from latentplan.api.show import describe
from latentplan.data.images import segment
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError
from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.deformable.rope import Rope
from latentplan.sim.randomisation import LIMITS, OBJECT, Randomisation
from latentplan.sim.rendering.appearance import TILE, Appearance

ALL = Randomisation(
    friction=(0.5, 1.5),
    mass=(0.02, 0.08),
    stiffness=(0.0, 0.02),
    damping=(1e-3, 4e-3),
    length=(0.3, 0.45),
    radius=(0.006, 0.012),
    object_colour=(0.6, 1.0),
    table_colour=(0.0, 0.4),
    texture=(0.2, 0.8),
    light=(0.7, 1.2),
    light_tilt=(10, 60),
    camera_shift=(-0.04, 0.04),
    camera_turn=(-3, 3),
    camera_zoom=(0.9, 1.1),
    action_noise=(0.01, 0.05),
    rgb_noise=(1, 10),
    depth_noise=(1e-3, 3e-3),
)


def rope(ranges, **settings):
    return Rope(Rope.Config(randomise=ranges, **settings))


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def episode(env, seed, *, steps=3):
    observation, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    found = [(observation, info["randomised"])]
    for _ in range(steps):
        step = env.step(rng.uniform(-1, 1, env.data_spec.action.size))
        found.append((step.observation, step.info["randomised"]))
    return found


def same(a, b):
    return all(equal(x[0], y[0]) and x[1] == y[1] for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("per", ["episode", "step"])
def test_a_seed_gives_the_same_whatever_ran_before(per):
    ranges = dataclasses.replace(ALL, per=per)
    env = rope(ranges, observe=("rgb", "depth"), cameras=("top", "side"))
    first = episode(env, 7)
    other = episode(env, 8)
    assert same(first, episode(env, 7))
    assert not equal(first[0][0], other[0][0])
    assert first[0][1].keys() == other[0][1].keys()
    assert all(first[0][1][name] != other[0][1][name] for name in first[0][1])
    env.close()


def test_every_number_lies_in_its_range_and_fills_it():
    env = rope(ALL)
    drawn = [env.reset(seed=seed)[1]["randomised"] for seed in range(40)]
    extra = ("light_heading", "texture_seed")  # have no range of their own
    parts = [key for key in drawn[0] if key not in extra]
    for name, (low, high) in ALL.ranges().items():
        longer = [n for n in ALL.ranges() if n.startswith(f"{name}_")]  # light, light_tilt
        mine = [p for p in parts if p.startswith(name) and p not in longer]
        values = [numbers[part] for numbers in drawn for part in mine]
        assert low <= min(values) < low + 0.2 * (high - low), name
        assert high >= max(values) > high - 0.2 * (high - low), name
    env.close()


def test_a_range_does_not_change_what_another_gives():
    alone, both = (
        rope(Randomisation(friction=(0.5, 1.5), **more)) for more in ({}, {"mass": (0.01, 0.1)})
    )
    for seed in range(3):
        a, b = (env.reset(seed=seed)[1]["randomised"]["friction"] for env in (alone, both))
        assert a == b
    alone.close()
    both.close()


def test_ranges_of_one_point_at_the_settings_change_nothing():
    """A random env whose ranges are the settings is the plain one, bit for bit."""
    plain = Rope(Rope.Config())
    settings = {name: (getattr(plain.config, name),) * 2 for name in OBJECT if name != "size"}
    still = {name: (0.0, 0.0) for name in ("camera_shift", "camera_turn", "action_noise")}
    one = {name: (1.0, 1.0) for name in ("light", "camera_zoom")}
    env = rope(Randomisation(**settings, **still, **one, rgb_noise=(0.0, 0.0)))
    for seed in range(3):
        want, want_info = plain.reset(seed=seed)
        got, got_info = env.reset(seed=seed)
        assert equal(want, got)
        assert equal(want_info["goal"], got_info["goal"])
        action = np.array([*want["keypoints"][5] / 0.3, 0.5, -0.5])
        assert equal(plain.step(action).observation, env.step(action).observation)
    plain.close()
    env.close()


@pytest.mark.parametrize("per", ["episode", "step"])
def test_a_snapshot_brings_everything_back(per):
    env = rope(dataclasses.replace(ALL, per=per), observe=("rgb", "depth"))
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (3, 4))
    env.step(actions[0])
    state = env.snapshot()
    ahead = [env.step(a) for a in actions]
    env.reset(seed=2)  # another rope, seen by another camera
    env.restore(state)
    again = [env.step(a) for a in actions]
    for x, y in zip(ahead, again, strict=True):
        assert equal(x.observation, y.observation)
        assert x.info["randomised"] == y.info["randomised"]
    env.close()


def test_a_late_action_is_part_of_a_snapshot():
    env = rope(Randomisation(latency=(2, 2)), control="velocity")
    env.reset(seed=0)
    env.step(np.array([1.0, 0, 0, 0]))
    state = env.snapshot()
    ahead = [env.step(np.array([0, 1.0, 0, 0])).observation["gripper"] for _ in range(4)]
    env.reset(seed=3)
    env.restore(state)
    again = [env.step(np.array([0, 1.0, 0, 0])).observation["gripper"] for _ in range(4)]
    assert np.array_equal(ahead, again)
    env.close()


def test_the_goal_of_a_seed_does_not_depend_on_the_episode():
    env = rope(ALL)
    want = env.goal(seed=5)
    first = episode(env, 3, steps=1)
    assert equal(env.goal(seed=5), want)
    env.reset(seed=3)
    env.goal(seed=5)  # and leaves the episode as it was
    rng = np.random.default_rng(3)
    step = env.step(rng.uniform(-1, 1, 4))
    assert equal(step.observation, first[1][0])
    env.close()


def test_the_object_is_the_one_that_was_drawn():
    env = rope(Randomisation(length=(0.25, 0.45), radius=(0.005, 0.015)))
    for seed in range(5):
        observation, info = env.reset(seed=seed)
        drawn = info["randomised"]
        for keypoints in (observation["keypoints"], info["goal"]["keypoints"]):
            length = np.linalg.norm(np.diff(keypoints, axis=0), axis=1).sum()
            assert length == pytest.approx(drawn["length"], rel=0.02)
        assert env._engine.points()[:, 2].mean() == pytest.approx(drawn["radius"], abs=1e-3)
    env.close()


def test_a_cloth_has_the_size_that_was_drawn():
    env = Cloth(Cloth.Config(task="fold", randomise=Randomisation(size=(0.15, 0.3))))
    sizes = []
    for seed in range(3):
        observation, info = env.reset(seed=seed)
        grid = observation["keypoints"].reshape(9, 9, 3)
        side = np.linalg.norm(grid[-1, 4] - grid[0, 4])
        assert side == pytest.approx(info["randomised"]["size"], rel=0.02)
        assert env.coverage(observation) == pytest.approx(1, abs=0.05)
        sizes.append(side)
    assert np.ptp(sizes) > 0.02
    env.close()


def test_friction_and_mass_reach_the_physics():
    """The engine that a draw builds is the one that the same settings build."""
    ranges = Randomisation(friction=(0.3, 0.3), mass=(0.08, 0.08), damping=(5e-3, 5e-3))
    drawn = rope(ranges)
    set_so = Rope(Rope.Config(friction=0.3, mass=0.08, damping=5e-3))
    plain = Rope()
    ends = []
    for env in (drawn, set_so, plain):
        observation, _ = env.reset(seed=0)
        pick = observation["keypoints"][1] / 0.3
        ends.append(env.step(np.array([*pick, 1, 1])).observation["keypoints"])
        env.close()
    assert np.array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-3


def test_what_an_engine_cannot_do_is_told_when_the_env_is_made():
    pytest.importorskip("pybullet")
    with pytest.raises(ConfigError, match="stiffness.*engine=pybullet"):
        rope(Randomisation(stiffness=(0.01, 0.02)), engine="pybullet")


def test_another_engine_draws_the_same_and_goes_back_too():
    pytest.importorskip("pybullet")
    ranges = dataclasses.replace(ALL, stiffness=(), per="step")
    envs = [rope(ranges, engine=engine) for engine in ("mujoco", "pybullet")]
    drawn = [env.reset(seed=4)[1]["randomised"] for env in envs]
    assert drawn[0] == drawn[1]
    env = envs[1]
    state = env.snapshot()
    ahead = [env.step(a) for a in np.random.default_rng(0).uniform(-1, 1, (2, 4))]
    env.reset(seed=5)
    env.restore(state)
    again = [env.step(a) for a in np.random.default_rng(0).uniform(-1, 1, (2, 4))]
    assert all(equal(x.observation, y.observation) for x, y in zip(ahead, again, strict=True))
    for each in envs:
        each.close()


def test_colours_and_light_are_seen():
    plain, _ = Rope().reset(seed=0)
    grey = rope(Randomisation(table_colour=(0.5, 0.5), object_colour=(1.0, 1.0)))
    seen = grey.reset(seed=0)[0]["rgb"]
    rope_mask = grey._engine.image("top", "segmentation") == 1
    table = seen[~rope_mask]
    assert (table == table[:, :1]).all() and 120 < table.mean() <= 128
    assert seen[rope_mask].mean() > 200
    dark = rope(Randomisation(light=(0.5, 0.5))).reset(seed=0)[0]["rgb"]
    assert dark.mean() == pytest.approx(plain["rgb"].mean() / 2, rel=0.05)


def test_a_tilted_light_makes_one_flank_of_the_rope_brighter():
    env = rope(Randomisation(light_tilt=(60, 60)))
    bright = 0
    for seed in range(8):
        observation, info = env.reset(seed=seed)
        heading = np.radians(info["randomised"]["light_heading"])
        mask = env._engine.image("top", "segmentation") == 1
        rows, columns = np.nonzero(mask)
        light = observation["rgb"][rows, columns].astype(float).sum(-1)
        # Brightness against how far towards the light a pixel lies from the rope's line.
        where = np.stack([(columns + 0.5) / 64 * 2 - 1, 1 - (rows + 0.5) / 64 * 2], 1) * 0.3
        line = observation["keypoints"]
        middle = line[np.linalg.norm(where[:, None] - line, axis=2).argmin(1)]
        toward = (where - middle) @ (np.cos(heading), np.sin(heading))
        bright += np.corrcoef(light, toward)[0, 1] > 0
    assert bright >= 7
    env.close()


def test_a_pattern_is_on_the_table_and_stays_for_the_episode():
    env = rope(Randomisation(texture=(0.8, 0.8)))
    plain, flat = Rope(), []
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        mask = env._engine.image("top", "segmentation") == 0
        assert observation["rgb"][mask][:, 1].std() > 8
        assert plain.reset(seed=seed)[0]["rgb"][mask][:, 1].std() < 3
        flat.append(observation["rgb"])
        away = env.step(np.array([-1.0, -1.0, 0, 0])).observation["rgb"]
        both = mask & (env._engine.image("top", "segmentation") == 0)
        assert np.array_equal(away[both], observation["rgb"][both])
    assert (flat[0] != flat[1]).mean() > 0.5
    env.close()


def test_a_tile_has_its_contrast_and_no_seam():
    tile = Appearance(contrast=0.7, pattern=3).tile()
    assert tile.shape == (TILE, TILE)
    assert tile.min() == pytest.approx(0.3) and tile.max() == pytest.approx(1)
    inner = np.abs(np.diff(tile, axis=0)).max()
    assert np.abs(tile[0] - tile[-1]).max() <= inner
    assert (Appearance().tile() == 1).all()


def test_cameras_move_and_say_where_they_are():
    ranges = Randomisation(camera_shift=(-0.08, 0.08), camera_turn=(-5, 5), camera_zoom=(0.8, 1.2))
    env = rope(ranges, cameras=("top", "angled"), observe=("depth", "segmentation"), image=96)
    where = set()
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        for name, camera in env.cameras().items():
            where.add(camera.position)
            u, v = np.rint(camera.project(env._engine.points()[1:-1])[0]).astype(int).T
            framed = (u >= 0) & (u < 96) & (v >= 0) & (v < 96)
            assert framed.sum() > 5
            assert (observation[f"segmentation_{name}"][v, u][framed] == 1).all()
            points = camera.unproject(observation[f"depth_{name}"])
            assert abs(np.median(points[..., 2])) < 1e-3
    assert len(where) == 8
    env.close()


def test_a_rectified_image_shows_the_table_as_the_unmoved_camera_does():
    moved = Randomisation(camera_shift=(-0.03, 0.03), camera_turn=(5, 5), camera_zoom=(1.1, 1.2))
    plain, turned = Rope(Rope.Config(image=128)), rope(moved, image=128)
    rectified = rope(moved, image=128, rectify=True)
    for seed in range(3):
        want, mask, got = (
            segment(env.reset(seed=seed)[0]["rgb"], env.data_spec.pick)
            for env in (plain, turned, rectified)
        )
        assert centre(got) == pytest.approx(centre(want), abs=1.5)  # pixels
        assert np.abs(centre(mask) - centre(want)).max() > 10
        assert rectified.cameras() == plain.cameras() != turned.cameras()
    for env in (plain, turned, rectified):
        env.close()


def centre(mask):
    return np.argwhere(mask).mean(0)


def test_only_colour_images_of_the_top_camera_are_rectified():
    with pytest.raises(ConfigError, match=r"Rope\.rectify: .*\['rgb', 'depth'\].*observe=\[rgb\]"):
        Rope.Config(rectify=True, observe=("rgb", "depth"))
    Rope.Config(rectify=True, observe=("depth",), cameras=("side",))


def test_noise_is_as_large_as_drawn_and_new_each_time():
    observe = ("rgb", "depth", "segmentation")
    plain = Rope(Rope.Config(observe=observe))
    env = rope(Randomisation(rgb_noise=(6, 6), depth_noise=(2e-3, 2e-3)), observe=observe)
    want, _ = plain.reset(seed=0)
    got, info = env.reset(seed=0)
    assert np.array_equal(want["keypoints"], got["keypoints"])
    rgb = got["rgb"].astype(float) - want["rgb"]
    inside = (want["rgb"] > 30) & (want["rgb"] < 225)
    assert rgb[inside].std() == pytest.approx(6, rel=0.05) and abs(rgb[inside].mean()) < 0.3
    depth = got["depth_top"] - want["depth_top"]
    assert depth.std() == pytest.approx(2e-3, rel=0.05) and abs(depth.mean()) < 2e-4
    for other in (env.step(np.array([1.0, 1.0, 0, 0])).observation, info["goal"]):
        table = (want["rgb"] < 120).any(-1) & (other["segmentation_top"] == 0)
        another = other["rgb"].astype(float) - want["rgb"]
        assert abs(np.corrcoef(rgb[table].ravel(), another[table].ravel())[0, 1]) < 0.05
    env.close()


def test_late_actions_come_late():
    env = rope(Randomisation(latency=(0, 3)), control="velocity")
    seen = set()
    for seed in range(8):
        start, info = env.reset(seed=seed)
        late = int(info["randomised"]["latency"])
        seen.add(late)
        way = [start["gripper"][0]]
        for _ in range(5):
            way.append(env.step(np.array([1.0, 0, 0, 0])).observation["gripper"][0])
        moved = np.diff(way) > 1e-6
        assert moved.tolist() == [False] * late + [True] * (5 - late)
    assert seen == {0, 1, 2, 3}
    env.close()


def test_noisy_actions_differ_by_the_noise_and_the_grip_is_kept():
    env = rope(Randomisation(action_noise=(0.1, 0.1)), control="velocity")
    env.reset(seed=0)
    moves = []
    for _ in range(60):
        before = env._engine.gripper()
        step = env.step(np.array([0, 0, 0, -1e-3]))
        assert step.observation["gripper"][3] == 0
        moves.append((env._engine.gripper() - before)[:2])
    std = np.std(moves) / (env.config.speed * env._period())
    assert std == pytest.approx(0.1, rel=0.25)
    env.close()


def test_per_step_the_numbers_change_and_are_observed():
    env = rope(dataclasses.replace(ALL, per="step"))
    assert env.data_spec.privileged == ("keypoints", "randomised")
    names = env.data_spec.observation["randomised"].meaning.split(", ")
    steps = episode(env, 0)
    for observation, drawn in steps:
        assert np.array_equal(observation["randomised"], np.float32([drawn[n] for n in names]))
    light, mass = ([drawn[name] for _, drawn in steps] for name in ("light", "mass"))
    assert len(set(light)) == len(steps) and len(set(mass)) == 1
    assert "mass" not in names and "light" in names
    assert "randomised" not in rope(ALL).data_spec.observation
    env.close()


def test_what_was_drawn_is_collected_and_shown(tmp_path):
    out = tmp_path / "rope.zarr"
    overrides = ["randomise.friction=[0.5,1.5]", "randomise.light=[0.7,1.2]", "collect.length=2"]
    collect("rope", episodes=3, out=out, workers=0, overrides=overrides)
    with ZarrStore.open(out) as store:
        env = rope(Randomisation(friction=(0.5, 1.5), light=(0.7, 1.2)))
        for index in range(3):
            stored = store.episode(index)
            _, info = env.reset(seed=stored.seed)
            for name, value in info["randomised"].items():
                assert stored.info[f"randomised.{name}"] == value
        assert len({store.episode(i).info["randomised.friction"] for i in range(3)}) == 3
    env.close()
    printed = "\n".join(describe(out, out=tmp_path / "rope.png"))
    assert "randomised.friction" in printed and "randomised.light" in printed


@pytest.mark.parametrize("name", [*LIMITS, *OBJECT])
def test_an_inverted_range_is_named(name):
    low, high = LIMITS.get(name, (0.1, 0.2))
    with pytest.raises(ConfigError, match=f"randomise.{name}: .* inverted"):
        Randomisation(**{name: (high, low)})


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"light": (1.0,)}, r"randomise.light: found \[1.0\], need \[low, high\]"),
        ({"light": (0.5, np.nan)}, "randomise.light"),
        ({"texture": (0.0, 2.0)}, "randomise.texture"),
        ({"per": "day"}, "randomise.per"),
        ({"size": (0.1, 0.2)}, "Rope.randomise.size: there is no such setting"),
        ({"length": (0.1, 0.9)}, "Rope.length: 0.9"),
        ({"latency": (0, 1)}, "Rope.randomise.latency: needs control=velocity"),
    ],
)
def test_a_range_that_does_not_fit_is_named(ranges, message):
    with pytest.raises(ConfigError, match=message):
        Rope.Config(randomise=Randomisation(**ranges))
