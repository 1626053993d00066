from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from latentplan import registry
from latentplan.errors import ConfigError, UnknownName

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import planner_peers  # noqa: E402
import planners  # noqa: E402
from planner_toy import BOUND, Toy  # noqa: E402

KEYS = {
    *("planner", "source", "candidates", "horizon", "batch", "iterations", "dtype", "device"),
    *("threads", "p50_ms", "p90_ms", "cost", "floor_ms"),
}
SMALL = {"candidates": (16,), "horizons": (3,), "batches": (1, 2), "repeats": 2}


def test_rows_a_file_and_a_plot_are_made_of_every_planner(tmp_path, capsys):
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    rows = planners.run(**SMALL, out=out, plot=plot)
    assert json.loads(out.read_text()) == rows
    assert plot.read_bytes()[:4] == b"\x89PNG"
    for row in rows:
        assert row.keys() >= KEYS
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["floor_ms"] > 0 and row["cost"] >= 0 and row["threads"] == 1
    ours = {row["planner"] for row in rows if row["source"] == "latentplan"}
    assert ours == set(registry.names("planner"))
    assert {row["batch"] for row in rows} == {1, 2}
    assert {row["start"] for row in rows if row["batch"] == 1} == {"cold", "warm"}
    assert "floor" in capsys.readouterr().out


def test_more_iterations_reach_less_and_a_warm_start_helps(tmp_path):
    larger = SMALL | {"batches": (1,), "horizons": (8,), "repeats": 8}
    rows = planners.run(**larger, planners=("icem",))
    cost = {
        (row["start"], row["iterations"]): row["cost"]
        for row in rows
        if row["source"] == "latentplan"
    }
    assert cost["cold", 12] <= cost["cold", 5] <= cost["cold", 1]
    assert cost["warm", 1] < cost["cold", 1]


def test_threads_are_given_back():
    before = torch.get_num_threads()
    planners.run(**SMALL | {"batches": (2,), "repeats": 1}, planners=("shooting",), threads=2)
    assert torch.get_num_threads() == before


def test_problems_are_the_same_again_and_can_be_solved():
    toy, again = Toy(batch=3, horizon=4), Toy(batch=3, horizon=4)
    toy.become(7)
    again.become(7)
    assert torch.equal(toy.start, again.start) and torch.equal(toy.goal, again.goal)
    z, a = torch.randn(2, 32), torch.randn(2, 4)
    torch.testing.assert_close(toy.model.step(z, a), toy.model.dynamics(z, a))
    actions = torch.zeros(3, 4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([actions], lr=0.1)
    before = toy.cost(actions.detach())
    for _ in range(100):
        optimizer.zero_grad()
        latents = toy.model.rollout(toy.start, actions[:, None])
        toy.objective(latents, actions[:, None]).sum().backward()
        optimizer.step()
    assert toy.cost(actions.detach().clamp(-BOUND, BOUND)) < 0.75 * before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"planners": ("cme",)}, UnknownName, "did you mean 'cem'"),
        ({"dtypes": ("float8",)}, ConfigError, "dtype: 'float8' is not one of float32"),
        ({"candidates": (0,)}, ConfigError, "candidates: 0 must be at least 1"),
        ({"repeats": 0}, ConfigError, "repeats: 0 must be at least 1"),
        ({"threads": 0}, ConfigError, "threads: 0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(settings, error, message):
    with pytest.raises(error, match=message):
        planners.run(**settings)


def test_the_command_takes_lists_of_numbers(tmp_path, capsys):
    out = str(tmp_path / "out.json")
    arguments = ["--candidates", "8", "--batch", "2", "--horizon", "2", "--repeats", "1"]
    planners.main([*arguments, "--planners", "cem,mppi", "--json", out])
    assert {row["planner"] for row in json.load(open(out)) if row["source"] == "latentplan"} == {
        "cem",
        "mppi",
    }
    with pytest.raises(SystemExit):
        planners.main(["--candidates", "many"])
    assert "invalid numbers value: 'many'" in capsys.readouterr().err


@pytest.mark.parametrize("fast", [False, True])
def test_a_peer_solves_the_same_problem(fast):
    if "stable-worldmodel" not in planner_peers.installed():
        pytest.skip('needs stable-worldmodel: pip install "latentplan[benchmarks]"')
    toy = Toy(batch=2, horizon=4)
    setting = {"candidates": 128, "iterations": 5, "batch_size": 1, "fast": fast}
    actions = planner_peers.stable_worldmodel("cem", toy, **setting)(0)
    assert toy.cost(actions) < 0.8 * toy.cost(torch.zeros(2, 4, 4))


def test_path_integrals_of_a_peer_solve_the_same_problem():
    if "pytorch-mppi" not in planner_peers.installed():
        pytest.skip('needs pytorch-mppi: pip install "latentplan[benchmarks]"')
    toy = Toy(batch=2, horizon=4)
    actions = planner_peers.pytorch_mppi(toy, candidates=128, iterations=5)(0)
    assert actions.shape == (2, 4, 4) and toy.cost(actions) < toy.cost(torch.zeros(2, 4, 4))
