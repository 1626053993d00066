"""What a Spec's JSON keeps: all of it, and what stores of before left out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from latentplan.errors import StoreError
from latentplan.models.cfm import CFM
from latentplan.sim.deformable.cloth import Cloth
from latentplan.sim.deformable.rope import Rope
from latentplan.types import ActionSpec, ArraySpec, PickSpec, PlanarSpec, Spec

SPEC = Spec({"rgb": ArraySpec((32, 32, 3), "uint8")}, ActionSpec((-1.0,) * 5, (1.0,) * 5), "mine")
ABOVE = PlanarSpec("rgb", ((3, 1), (0, 2)))


def again(spec: Spec) -> Spec:
    return Spec.from_json(json.loads(json.dumps(spec.to_json())))


@pytest.mark.parametrize("env", ["mine", "rope"])
@pytest.mark.parametrize("pick", [None, PickSpec("rgb", (1, 2, 3))])
@pytest.mark.parametrize("planar", [None, ABOVE, PlanarSpec("rgb", ((0, 1),))])
def test_json_keeps_all_of_it(env: str, pick: PickSpec | None, planar: PlanarSpec | None) -> None:
    spec = replace(SPEC, env=env, pick=pick, planar=planar)
    assert again(spec) == spec


@pytest.mark.parametrize("make", [Rope, Cloth])
@pytest.mark.parametrize("control", ["pick", "velocity"])
def test_rope_and_cloth_are_seen_from_above_in_stores_of_before_too(make, control: str) -> None:
    env = make(make.Config(control=control))
    spec = env.data_spec
    env.close()
    before = spec.to_json()
    assert "planar" not in before and Spec.from_json(before) == spec
    pairs = ((0, 1), (2, 3)) if control == "pick" else ((0, 1),)  # z and the grip stay
    assert spec.planar == PlanarSpec("rgb", pairs)
    assert CFM(spec, CFM.Config(latent=2, observe=("rgb",))).config.symmetric is True


@pytest.mark.parametrize("pairs", [[[0, 5]], [[0, 0]], [[0, 1], [1, 2]], [[0]], [[0, "x"]], 3])
def test_pairs_that_are_none_are_refused(pairs: object) -> None:
    values = {**SPEC.to_json(), "planar": {"image": "rgb", "pairs": pairs}}
    with pytest.raises(StoreError, match="^spec"):
        Spec.from_json(values)
