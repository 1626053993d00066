"""`latentplan config`: every field of every Config, with its type, default, range and meaning."""

from dataclasses import dataclass, field

import pytest

from latentplan import config, registry
from latentplan.api import fields
from latentplan.cli import main
from latentplan.errors import ConfigError, check_range

WITHOUT = {"robot"}  # kinds without settings
NAMES = [
    (kind, name)
    for kind in registry.BUILT_IN
    if kind not in WITHOUT
    for name in sorted(registry.BUILT_IN[kind])
]
SHIPPED = [(kind, n) for kind, names in config.presets().items() for n in names]


@dataclass(frozen=True)
class Inner:
    """A nested Config."""

    depth: float = 0.5  # m, of the water

    def __post_init__(self) -> None:
        check_range("Inner.depth", self.depth, 0)


@dataclass(frozen=True)
class Base:
    size: int = 3  # pixels a side
    rate: float = 1.0  # Hz
    unsaid: int = 1


@dataclass(frozen=True)
class Config(Base):
    size: int = 4
    sides: tuple[int, ...] = (
        1,
        2,
    )  # a side, "#1" first
    name: str = "a # b"  # not the default's comment
    inner: Inner = field(default_factory=Inner)  # the pond

    def __post_init__(self) -> None:
        for name in ("size", "rate"):
            check_range(f"Config.{name}", getattr(self, name), 1, 64)


@pytest.mark.parametrize("kind, name", NAMES, ids=lambda part: part)
def test_every_field_of_every_config_says_what_it_means(kind, name):
    found, _ = fields.describe(kind, name)
    assert [f.name for f in found if not f.meaning] == []


@pytest.mark.parametrize("section", fields.SECTIONS)
def test_every_field_of_the_other_sections_says_what_it_means(section):
    found, elsewhere = fields.describe(section)
    assert found and elsewhere == {}
    assert [f.name for f in found if not f.meaning] == []


@pytest.mark.parametrize("kind, name", SHIPPED, ids=lambda part: part)
def test_every_preset_is_shown_with_its_values(kind, name):
    if kind in registry.BUILT_IN and kind not in WITHOUT:
        found, _ = fields.describe(kind, name)
        assert found


def test_a_config_is_read_with_its_bases_and_the_dataclasses_in_it():
    found = {f.name: f for f in fields.fields(Config, Config(rate=2.0))}
    assert list(found) == ["size", "rate", "unsaid", "sides", "name", "inner", "inner.depth"]
    assert found["size"].meaning == "pixels a side"  # that of the base
    assert found["size"].range == found["rate"].range == "1 to 64"
    assert (found["rate"].value, found["rate"].default) == (2.0, 1.0)
    assert found["unsaid"].meaning == found["unsaid"].range == ""
    assert found["sides"].meaning == 'a side, "#1" first'
    assert found["sides"].type == "tuple[int, ...]"
    assert found["name"].meaning == "not the default's comment"
    assert found["inner"].type == "Inner" and found["inner"].meaning == "the pond"
    assert found["inner.depth"].range == "at least 0" and found["inner.depth"].value == 0.5


def test_a_preset_shows_its_values_beside_the_defaults(capsys):
    assert main(["config", "model", "cfm_paper"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["field", "type", "default", "preset", "range", "meaning"]
    (row,) = [line for line in out.splitlines() if line.startswith("latent ")]
    assert row.split()[:7] == ["latent", "int", "64", "8", "1", "to", "4096"]
    assert "The preset also sets training.window=2 " in out


def test_a_section_and_a_class_are_shown(capsys, monkeypatch):
    assert main(["config", "mpc"]) == 0
    assert "deadline_ms" in capsys.readouterr().out
    assert main(["config", "env", "toy:ToyEnv"]) == 0
    assert "1 to 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["model"], "model: which one? known: autoencoder, calibrated, cfm"),
        (["models", "cfm"], "did you mean 'model'"),
        (["model", "cfn"], "did you mean 'cfm'"),
        (["mpc", "cem"], "it is a section and has no names"),
        (["robot", "panda"], "has no settings"),
    ],
)
def test_what_has_no_fields_is_one_line(arguments, told, capsys):
    assert main(["config", *arguments]) == 2
    seen = capsys.readouterr()
    assert told in seen.err and seen.err.count("\n") == 1


def test_ranges_are_read_inside_the_block_alone():
    from latentplan.errors import ranges

    with ranges() as found:
        check_range("A.b", 1, 0, 2)
        with pytest.raises(ConfigError):
            check_range("A.c", 3, None, 2)
    check_range("A.d", 1, 0)
    assert found == {"b": (0, 2), "c": (None, 2)}
