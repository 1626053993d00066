from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentplan import config, registry
from latentplan.errors import ConfigError, UnknownName, check_range


@dataclass(frozen=True)
class Weights:
    goal: float = 1.0
    powers: tuple[int, ...] = (1, 2)


class Sampler:
    @dataclass(frozen=True)
    class Config:
        elites: int = 8
        rate: float = 1e-3
        kind: Literal["normal", "uniform"] = "normal"
        limit: int | None = None
        warm: bool = True
        name: str = "a"
        weights: Weights = field(default_factory=Weights)

        def __post_init__(self) -> None:
            check_range("Sampler.elites", self.elites, 2, 64)


@dataclass(frozen=True)
class Schedule:
    steps: int = 10
    rate: float = 0.1


SECTIONS = {"sampler": Sampler.Config, "schedule": Schedule}


def load(*overrides: str, preset: dict | None = None) -> tuple[Sampler.Config, Schedule]:
    loaded = config.load(SECTIONS, preset=preset, overrides=overrides)
    return loaded["sampler"], loaded["schedule"]


def test_defaults_then_preset_then_overrides() -> None:
    preset = {"elites": 4, "name": "b", "schedule": {"steps": 5, "rate": 0.5}}
    sampler, schedule = load("elites=6", "schedule.steps=7", preset=preset)
    assert sampler == Sampler.Config(elites=6, name="b")
    assert schedule == Schedule(steps=7, rate=0.5)


@pytest.mark.parametrize(
    ("override", "field_name", "value"),
    [
        ("limit=4", "limit", 4),
        ("limit=null", "limit", None),
        ("warm=false", "warm", False),
        ("sampler.rate=1e-5", "rate", 1e-5),
        ("sampler.rate=2", "rate", 2.0),
        ("kind=uniform", "kind", "uniform"),
        ("name=3", "name", "3"),
        ("name=a=b", "name", "a=b"),
        ("weights.goal=2", "weights", Weights(goal=2.0)),
        ("sampler.weights.powers=[3,4]", "weights", Weights(powers=(3, 4))),
    ],
)
def test_an_override_sets_its_field(override: str, field_name: str, value: object) -> None:
    sampler, schedule = load(override)
    assert getattr(sampler, field_name) == value
    assert type(getattr(sampler, field_name)) is type(value)
    assert schedule == Schedule()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("elite=3", "no key 'elite'; did you mean 'elites'? known: sampler.elites"),
        ("sampler.elite=3", "Sampler has no key 'elite'; did you mean 'elites'? known: elites"),
        ("weights.gaol=3", "Sampler.weights has no key 'gaol'; did you mean 'goal'?"),
        ("rate=1", "rate: several sections have it; write sampler.rate or schedule.rate"),
        ("elites=999", "Sampler.elites: 999 is not within [2, 64]"),
        ("elites=many", "Sampler.elites: found 'many', needs int"),
        ("elites=2.5", "Sampler.elites: found 2.5, needs int"),
        ("elites=null", "Sampler.elites: found None, needs int"),
        ("warm=maybe", "Sampler.warm: found 'maybe', needs bool"),
        ("kind=cauchy", "Sampler.kind: found 'cauchy', needs Literal['normal', 'uniform']"),
        ("weights=3", "Sampler.weights: found 3, needs Weights"),
        ("weights.goal=x", "Sampler.weights.goal: found 'x', needs float"),
        ("weights.powers=[1,x]", "Sampler.weights.powers"),
        ("sampler=3", "sampler: found 3; it is a section: set sampler.FIELD"),
        ("elites", "'elites': an override is key=value"),
        ("=3", "'=3': an override is key=value"),
        ("name=[a", "'name=[a': not key=value in YAML"),
        ("name=${oc.env:HOME}", "interpolation is not allowed"),
        ("name=???", "interpolation is not allowed"),
        ('name=["${oc.env:HOME}"]', "interpolation is not allowed"),
        ("weights={a: ['???',1]}", "interpolation is not allowed"),
        ('sampler={name: "a${b}"}', "interpolation is not allowed"),
        (f"elites={'9' * 5000}", "'... (5007 characters): not key=value in YAML"),
        ("name=\ud800", "not key=value in YAML"),
        (f"name={'[' * 3000}", "not key=value in YAML"),
    ],
)
def test_a_wrong_override_is_told_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_preset_is_checked_as_an_override_is() -> None:
    with pytest.raises(ConfigError, match="did you mean 'elites'"):
        load(preset={"elite": 3})
    with pytest.raises(ConfigError, match="Sampler.elites: found 'x', needs int"):
        load(preset={"sampler": {"elites": "x"}})
    for value in ("${b}", ["${b}"], {"a": ["${b}"]}, ("???",), {"${b}": 1}):
        with pytest.raises(ConfigError, match="interpolation is not allowed"):
            load(preset={"sampler": {"name": value}})


@pytest.mark.parametrize(
    "text", ["- 1", "1: 2", "a: 1\na: 2", "a: " + "9" * 5000, "a: " + "[" * 3000, "a: [", "\0"]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="config.yaml: not "):
        config.read_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["0E0", "1e3", "1_0e3", ".5", "nan", "yes", "0x1f", "12:30:00"])
def test_text_like_a_number_comes_back_as_text(tmp_path, name):
    config.save_yaml(tmp_path / "config.yaml", {"name": name, name: 1})
    assert config.read_yaml(tmp_path / "config.yaml") == {"name": name, name: 1}


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        Sampler.Config,
        elites=st.integers(2, 64),
        rate=st.floats(allow_nan=False),
        kind=st.sampled_from(["normal", "uniform"]),
        limit=st.none() | st.integers(-(2**40), 2**40),
        name=st.text().filter(lambda text: "${" not in text and text != "???"),
        weights=st.builds(
            Weights, goal=st.floats(allow_nan=False), powers=st.lists(st.integers()).map(tuple)
        ),
    )
)
def test_values_come_back_through_a_file(tmp_path_factory, filled: Sampler.Config) -> None:
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    config.save_yaml(path, config.to_values(filled))
    assert config.from_values(Sampler.Config, config.read_yaml(path)) == filled
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]


def test_a_value_that_yaml_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config.save_yaml(path, {"a": 1})
    with pytest.raises(Exception, match="cannot represent"):
        config.save_yaml(path, {"a": object()})
    assert config.read_yaml(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["a: [", "- 1", "a: 1\na: 2"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="config.yaml: not "):
        config.read_yaml(path)
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        config.read_yaml(tmp_path / "missing.yaml")


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "env").mkdir()
    monkeypatch.setattr(config, "FOLDER", tmp_path)
    return tmp_path / "env"


def test_a_name_is_a_preset_or_a_registered_class(presets: Path) -> None:
    (presets / "stiff_rope.yaml").write_text("base: rope\nstiffness: 1e-3\n")
    assert config.presets() == {"env": ["stiff_rope"]}
    assert config.resolve("env", "stiff_rope") == config.Preset("rope", {"stiffness": 1e-3})
    assert config.resolve("env", "rope") == config.Preset("rope", {})
    with pytest.raises(UnknownName, match="no env named 'stiff-rope'; did you mean 'stiff_rope'"):
        config.resolve("env", "stiff-rope")


def test_a_preset_that_bears_a_registered_name_is_what_it_means(presets: Path) -> None:
    (presets / "rope.yaml").write_text("base: rope\nlinks: 30\n")
    assert config.resolve("env", "rope").values == {"links": 30}


@pytest.mark.parametrize("text", ["links: 3\n", "base: rpoe\n", "base: os:system\n"])
def test_a_preset_needs_a_registered_base(presets: Path, text: str) -> None:
    (presets / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"preset env/odd\.base: .* known: .*cloth, .*rope"):
        config.resolve("env", "odd")


def test_every_shipped_preset_names_a_registered_class() -> None:
    shipped = [(kind, name) for kind, names in config.presets().items() for name in names]
    for kind, name in shipped:
        assert config.resolve(kind, name).base in registry.names(kind)


@pytest.mark.parametrize("value", ["[1,{a: 2}]", "[[1],2]", "{a: 1}", "{}"])
def test_a_tuple_of_numbers_holds_numbers_alone(value: str) -> None:
    with pytest.raises(ConfigError, match="powers.*needs tuple"):
        load(f"sampler.weights.powers={value}")


@pytest.mark.parametrize("override", ["[=1", "[[=1"])
def test_a_key_that_omegaconf_cannot_split_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="not key=value in YAML|no key"):
        load(override)
