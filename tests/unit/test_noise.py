from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentplan.planning import noise
from latentplan.planning.mppi import weights

LIKE = (torch.device("cpu"), torch.float64)


def colour(horizon, beta):
    return noise.colour(horizon, beta, like=LIKE).numpy()


def spline(horizon, knots, degree):
    return noise.spline(horizon, knots, degree, like=LIKE).numpy()


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 5, 8, 31, 64])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0, 4.0, 10.0])
def test_every_step_has_variance_one_and_the_same_neighbours(horizon, beta):
    basis = colour(horizon, beta)
    covariance = basis @ basis.T
    np.testing.assert_allclose(np.diag(covariance), 1, rtol=1e-12)
    for lag in range(horizon):  # stationary: what is related is the same at every step
        along = np.diag(covariance, lag)
        np.testing.assert_allclose(along, along[0], atol=1e-12)


@pytest.mark.parametrize("horizon", [1, 2, 3, 4, 5, 8, 31, 64])
def test_colour_nought_is_white(horizon):
    basis = colour(horizon, 0.0)
    np.testing.assert_allclose(basis @ basis.T, np.eye(horizon), atol=1e-12)
    assert basis.shape == (horizon, horizon)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 3.0])
def test_the_power_density_falls_as_one_over_f_to_the_beta(beta):
    horizon, generator = 128, torch.Generator().manual_seed(0)
    basis = noise.colour(horizon, beta, like=LIKE)
    draws = basis @ torch.randn(horizon, 20_000, generator=generator, dtype=torch.float64)
    power = np.abs(np.fft.rfft(draws.numpy(), axis=0)[1:-1]) ** 2
    frequency = np.fft.rfftfreq(horizon)[1:-1]
    slope, _ = np.polyfit(np.log(frequency), np.log(power.mean(1)), 1)
    assert slope == pytest.approx(-beta, abs=0.02)
    whole = np.abs(np.fft.rfft(draws.numpy(), axis=0)) ** 2
    assert whole[0].mean() == pytest.approx(power[0].mean(), rel=0.05)  # as the lowest frequency


@pytest.mark.parametrize("beta", [1.0, 2.0, 4.0])
def test_the_redder_the_smoother(beta):
    def jump(beta):
        return np.square(np.diff(colour(32, beta), axis=0)).sum(1).mean()

    assert jump(beta) < 0.7 * jump(beta / 2)


@settings(max_examples=200, deadline=None)
@given(
    horizon=st.integers(1, 40),
    knots=st.integers(1, 40),
    degree=st.sampled_from(sorted(noise.DEGREES)),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_spline_goes_through_its_knots_and_keeps_a_constant(horizon, knots, degree, seed):
    basis = spline(horizon, knots, degree)
    count = min(knots, horizon)
    assert basis.shape == (horizon, count)
    np.testing.assert_allclose(basis.sum(1), 1, atol=1e-9)
    values = np.random.default_rng(seed).normal(size=count)
    curve = basis @ values
    places = np.linspace(0, horizon - 1, count)
    whole = np.isclose(places, np.rint(places))
    if degree == "zero":
        assert set(curve) <= set(values) and curve[0] == values[0] and curve[-1] == values[-1]
    elif count > 1:
        steps = np.rint(places[whole]).astype(int)
        np.testing.assert_allclose(curve[steps], values[whole], atol=1e-6)
    if count == horizon:
        np.testing.assert_allclose(basis, np.eye(horizon), atol=1e-9)


def test_splines_of_a_degree_keep_polynomials_of_it():
    for degree, power in (("linear", 1), ("cubic", 3)):
        at = np.linspace(0, 19, 7)
        np.testing.assert_allclose(
            spline(20, 7, degree) @ at**power, np.arange(20.0) ** power, rtol=1e-9, atol=1e-9
        )


def test_bases_have_the_requested_dtype():
    like = (torch.device("cpu"), torch.float32)
    assert noise.colour(5, 1.0, like=like).dtype == torch.float32
    assert noise.spline(5, 3, "cubic", like=like).dtype == torch.float32


def size(weight):
    """Return the effective sample size (B,)."""
    return 1 / weight.double().square().sum(1)


COSTS = ["normal", "uniform", "lognormal", "outlier", "far"]


def costs(kind, count=512):
    draw = torch.Generator().manual_seed(0)
    cost = torch.randn(3, count, generator=draw, dtype=torch.float64)
    if kind == "uniform":
        cost = torch.rand(3, count, generator=draw, dtype=torch.float64)
    if kind == "lognormal":
        cost = (2 * cost).exp()
    if kind == "outlier":
        cost[:, 7] = 1e12  # one draw that a model diverges on
    if kind == "far":
        cost[:, : count // 2] += 1e6
    return cost


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("effective", [0.01, 0.05, 0.2])
def test_the_effective_sample_size_is_the_requested_share(kind, effective):
    weight = weights(costs(kind), 0.0, effective)
    torch.testing.assert_close(weight.sum(1), torch.ones(3, dtype=torch.float64))
    wanted = effective * 512
    assert (size(weight) >= 0.999 * wanted).all() and (size(weight) <= 1.02 * wanted).all()


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e9])
def test_without_a_temperature_the_unit_of_the_cost_does_not_matter(scale):
    cost = costs("normal")
    wanted = weights(cost, 0.0, 0.1)
    torch.testing.assert_close(weights(scale * cost, 0.0, 0.1), wanted, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(weights(cost + 100 * scale, 0.0, 0.1), wanted, rtol=1e-3, atol=1e-6)


def test_with_a_temperature_weights_are_boltzmann_s():
    cost = costs("normal", 16)
    wanted = torch.exp(-cost / 0.5)
    torch.testing.assert_close(weights(cost, 0.5, 0.1), wanted / wanted.sum(1, keepdim=True))
    shifted = weights(cost + 1e5, 0.5, 0.1)
    torch.testing.assert_close(shifted, wanted / wanted.sum(1, keepdim=True), rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_what_costs_infinity_weighs_nothing(temperature):
    cost = costs("normal", 32)
    cost[:, ::2] = torch.inf
    weight = weights(cost, temperature, 0.2)
    assert (weight[:, ::2] == 0).all()
    torch.testing.assert_close(weight.sum(1), torch.ones(3, dtype=torch.float64))
    nothing = weights(torch.full((2, 8), torch.inf), temperature, 0.2)
    assert (nothing == 0).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_equal_costs_weigh_the_same(temperature):
    for cost in (0.0, 3.5, -1e9):
        weight = weights(torch.full((2, 8), cost), temperature, 0.2)
        torch.testing.assert_close(weight.float(), torch.full((2, 8), 1 / 8))


def test_one_draw_weighs_all():
    assert weights(torch.tensor([[3.0]]), 0.0, 0.05).item() == 1
