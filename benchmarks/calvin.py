"""Compare our CALVIN env with calvin_env: speed, agreement of success tests, and baselines.

    CALVIN_ENV_ROOT=... python benchmarks/calvin.py --data DIR --json benchmarks/calvin.json

needs a checkout of calvin_env and a data set in CALVIN's format. With `--calvin`, a checkout of
mees/calvin, policies are conditioned on its sentences.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from time import process_time

import numpy as np

from latentplan.data.sources.calvin import Calvin as Source
from latentplan.evaluation.calvin import chains, rollouts
from latentplan.evaluation.calvin.baselines import Noop, Presser, Random
from latentplan.evaluation.calvin.tasks import TASKS, achieved
from latentplan.evaluation.provenance import provenance
from latentplan.files import replacing
from latentplan.sim.calvin import checkout
from latentplan.sim.calvin.env import Calvin


def speed():
    """Return steps per second of CPU time in one thread, which does not depend on other load."""
    found = {}
    root = checkout.find()
    settings = checkout.settings(root)
    theirs = checkout.simulator(root).PlayTableSimEnv(
        robot_cfg=settings.robot, scene_cfg=settings.scene, cameras={}, seed=0, use_vr=False,
        bullet_time_step=240.0, show_gui=False, use_scene_info=True, use_egl=False,
    )  # fmt: skip
    theirs.reset()
    envs = {
        "without_cameras": Calvin(Calvin.Config(cameras=())),
        "both_cameras": Calvin(),
        "static_camera_64": Calvin(Calvin.Config(cameras=("static",), image=64)),
    }
    for env in envs.values():
        env.reset(seed=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (300, 7))
    actions[:, 6] = np.sign(actions[:, 6])
    steps = {"calvin_env_without_cameras": (theirs.step, 300)}
    steps |= {name: (env.step, 300 if "without" in name else 40) for name, env in envs.items()}
    for name, (step, count) in steps.items():
        rounds = []
        for _ in range(3):
            began = process_time()
            for action in actions[:count]:
                step(action)
            rounds.append(count / (process_time() - began))
        found[f"steps_per_cpu_s_{name}"] = float(np.median(rounds))
    env = envs["without_cameras"]
    timed = {"snapshot_cpu_ms": env.snapshot, "reset_cpu_ms": lambda: env.reset(seed=1)}
    state = env.snapshot()
    timed["restore_cpu_ms"] = lambda: env.restore(state)
    for name, call in timed.items():
        began = process_time()
        for _ in range(50):
            call()
        found[name] = (process_time() - began) / 50 * 1e3
    for each in (*envs.values(), theirs):
        each.close()
    return found


def agreement(data, *, episodes):
    """Return how often our 34 success tests agree with those of calvin_env."""
    from calvin_env.envs.tasks import Tasks

    file = checkout.find() / "conf" / "tasks" / "new_playtable_tasks.yaml"
    from latentplan.config import read_yaml

    oracle = Tasks(read_yaml(file)["tasks"])
    env = Calvin(Calvin.Config(cameras=(), clip=True))
    counts = Counter()

    def compare(infos, rng, pairs):
        for _ in range(pairs):
            i, j = sorted(rng.integers(0, len(infos), 2))
            ours, theirs = achieved(infos[i], infos[j]), oracle.get_task_info(infos[i], infos[j])
            counts["decisions"] += len(TASKS)
            counts["disagree"] += len(ours ^ theirs)
            counts.update(theirs)

    rng, recorded = np.random.default_rng(0), {}
    for split in ("training", "validation"):
        source = Source(data, Source.Config(split=split, action="absolute"))
        for number in range(len(source)):
            episode = source.episode(number)
            for label in episode.labels:
                seen = episode.observations
                start = {k: seen[k][label.start] for k in ("robot_obs", "scene_obs")}
                env.reset(seed=0, options=start)
                infos = [env.task_info()]
                for pose in episode.actions[label.start : label.stop]:
                    follow(env, pose.astype(np.float64))
                    infos.append(env.task_info())
                ours, theirs = achieved(infos[0], infos[-1]), oracle.get_task_info(
                    infos[0], infos[-1]
                )
                recorded[label.task] = {"ours": sorted(ours), "theirs": sorted(theirs)}
                compare(infos, rng, 300)
    states = list(chains._states())
    for number in range(episodes):
        robot, scene = chains.start(states[rng.integers(len(states))])
        env.reset(seed=number, options={"robot_obs": robot, "scene_obs": scene})
        infos = [env.task_info()]
        for step in range(150):
            infos.append(wander(env, rng, step))
        compare(infos, rng, 400)
    env.close()
    decisions, disagree = counts.pop("decisions"), counts.pop("disagree")
    return {
        "decisions": decisions,
        "disagree": disagree,
        "successes_by_task": dict(sorted(counts.items())),
        "recorded_parts_replayed": recorded,
    }


def follow(env, pose):
    """Step calvin_env towards a recorded pose (7,) of the arm."""
    grip = 1 if pose[6] >= 0 else -1
    env._sim.step((pose[:3], pose[3:6], (grip,)))


def wander(env, rng, step):
    """Step an arm that reaches for a random object and drags it, and return the new state."""
    if step % 50 == 0:
        wander.goal = rng.integers(6)
        wander.drift, wander.grip = rng.choice([-1, 0, 1], 3), rng.choice([-1, 1])
    sim = env._sim
    state = sim.get_state_obs()
    if wander.goal < 3:
        target = state["scene_obs"][6 + 6 * wander.goal :][:3]
    else:  # a handle: switch, slider, drawer
        table = sim.scene.fixed_objects[0].uid
        target = np.array(sim.p.getLinkState(table, wander.goal - 2)[0])
    action = rng.normal(0, 0.2, 7)
    near = step % 50 < 25
    action[:3] += (target - state["robot_obs"][:3]) / 0.02 if near else wander.drift
    action[6] = 1 if near else wander.grip
    env.step(action)
    return env.task_info()


def controls(data, *, count, texts):
    """Return the baselines' MTLC on the data and their LH-MTLC on `count` chains."""
    env = Calvin(Calvin.Config(cameras=(), clip=True))
    drawn = chains.chains()[:count]
    trials = list(rollouts.trials(Source(data, Source.Config(split="validation")), texts=texts))
    trials += rollouts.trials(Source(data, Source.Config(split="training")), texts=texts)
    found = {}
    for name, policy in (("noop", Noop()), ("random", Random()), ("presser", Presser())):
        single = rollouts.rates(rollouts.single(policy, env, trials=trials))
        done = list(rollouts.long(policy, env, chains=drawn, texts=texts))
        rates = rollouts.chain_rates(done, of=drawn)
        found[name] = {
            "single": {"tasks": dict(single.tasks), "rate": single.rate, "ci95": single.interval},
            "chains": {
                "chains": len(done),
                "in_a_row": rates.in_a_row,
                "ci95": rates.intervals,
                "mean": rates.mean,
                "tasks": dict(rates.tasks.tasks),
            },
        }
        print(name, json.dumps(found[name]))
    env.close()
    return found


def main():
    """Measure everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a data set in CALVIN's format")
    parser.add_argument("--calvin", type=Path, help="a checkout of mees/calvin")
    parser.add_argument("--chains", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=20, help="rollouts of the comparison")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    texts = rollouts.sentences(args.calvin) if args.calvin else None
    results = {"provenance": provenance(), "speed": speed()}
    print(json.dumps(results["speed"], indent=2))
    results["agreement"] = agreement(args.data, episodes=args.episodes)
    print(json.dumps(results["agreement"], indent=2))
    results["controls"] = controls(args.data, count=args.chains, texts=texts)
    if args.json:
        with replacing(args.json) as partial:
            partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
