"""The checks of sources find what is broken: one that keeps all, and one that breaks each."""

import itertools
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from latentplan.conformance.suite import Broken, NotApplicable, Subject, checks, run
from latentplan.errors import ConfigError, LatentplanError, SourceError
from latentplan.types import ActionSpec, ArraySpec, Episode, Label, Spec

LENGTH = 4  # actions of an episode
KEYS = {"place": 2, "speed": 3}  # observations, and the number of values of each
NAN = float("nan")
calls = itertools.count()


class Kept:
    """A Source of a folder of JSON files, one an episode, with a seed each."""

    @dataclass(frozen=True)
    class Config:
        scale: float = 1.0  # metres of a unit

    def __init__(self, path, config=None, *, keys=None):
        self.config = config or self.Config()
        self.files = sorted(path.glob("*.json")) if path.is_dir() else []
        if not self.files:
            raise SourceError(f"{path}: holds no episode (*.json)")
        if keys is not None and not keys:
            raise ConfigError("import.keys: none is given")
        for key in keys or ():
            if key not in KEYS:
                raise ConfigError(f"import.keys: no observation {key!r}; known: {', '.join(KEYS)}")
        self.keys = list(KEYS if keys is None else keys)
        self.spec = Spec(
            {key: ArraySpec((KEYS[key],)) for key in self.keys}, ActionSpec((-1.0,) * 2, (1.0,) * 2)
        )
        self.settings = {"scale": self.config.scale}
        self.notes = ["places are in metres"]
        self.counts = {"episodes": {"kept": len(self.files), "too short": 0}}

    def __len__(self):
        return len(self.files)

    def episode(self, index):
        file = self.files[index]
        try:
            seed = json.loads(file.read_text())["seed"]
        except (OSError, ValueError) as e:
            raise SourceError(f"{file}: is damaged ({type(e).__name__})") from None
        draw = np.random.default_rng(seed)
        rows = {key: draw.normal(size=(LENGTH + 1, size)) for key, size in KEYS.items()}
        return Episode(
            {key: rows[key].astype(np.float32) for key in self.keys},
            draw.uniform(-1, 1, (LENGTH, 2)).astype(np.float32),
            np.zeros(LENGTH, np.float32),
            labels=(Label("go there", "reach"),),
            info={"seed": float(seed)},
        )


def changed(opened=None, episode=None):
    """Return a class that changes a source after opening, or its episodes."""

    class Changed(Kept):
        def __init__(self, path, config=None, *, keys=None):
            super().__init__(path, config, keys=keys)
            self.path, self.asked = path, keys
            if opened is not None:
                opened(self)

        def episode(self, index):
            found = super().episode(index)
            return found if episode is None else episode(self, found)

    return Changed


def with_spec(**values):
    return changed(lambda source: setattr(source, "spec", replace(source.spec, **values)))


def rows(key, change):
    """Return a change of an array of an episode."""

    def apply(source, found):
        if key in ("actions", "rewards"):
            return replace(found, **{key: change(getattr(found, key))})
        others = dict(found.observations)
        if key in others:
            others[key] = change(others[key])
        return replace(found, observations=others)

    return apply


class Bare(Kept):
    @dataclass(frozen=True)
    class Config:
        scale: float = 1.0


class Rounding(Kept):
    @dataclass(frozen=True)
    class Config:
        scale: float = 1.0  # metres of a unit

        def __post_init__(self):
            object.__setattr__(self, "scale", self.scale + 1)


class Careless(Kept):
    """Ignores an unknown key."""

    def __init__(self, path, config=None, *, keys=None):
        known = [key for key in keys or () if key in KEYS]
        super().__init__(path, config, keys=(known or None) if keys else keys)


class AllOfNone(Kept):
    def __init__(self, path, config=None, *, keys=None):
        super().__init__(path, config, keys=keys or None)


class Silent(Kept):
    def __init__(self, path, config=None, *, keys=None):
        try:
            super().__init__(path, config, keys=keys)
        except ConfigError:
            raise ConfigError("import.keys: unknown") from None


class Anywhere(Kept):
    """Opens what has no episodes."""

    spec, settings = None, {}

    def __init__(self, path, config=None, *, keys=None):
        try:
            super().__init__(path, config, keys=keys)
        except SourceError:
            self.files = []


def refusing(text):
    class Refusing(Kept):
        def __init__(self, path, config=None, *, keys=None):
            try:
                super().__init__(path, config, keys=keys)
            except SourceError:
                raise SourceError(text.format(path=path)) from None

    return Refusing


class Verbose(Kept):
    def episode(self, index):
        try:
            return super().episode(index)
        except SourceError as e:
            raise SourceError(f"{e}\nsee the log") from None


class Tolerant(Kept):
    """Reads a damaged file as if its seed were 0."""

    def __init__(self, path, config=None, *, keys=None):
        super().__init__(path, config, keys=keys)
        self.files = self.files or [path]

    def episode(self, index):
        try:
            return super().episode(index)
        except SourceError:
            zeros = {key: np.zeros((2, KEYS[key]), np.float32) for key in self.keys}
            return Episode(zeros, np.zeros((1, 2), np.float32), np.zeros(1, np.float32))


class Crashing(Kept):
    def episode(self, index):
        json.loads(self.files[index].read_text())
        return super().episode(index)


def reversed_keys(source):
    source.spec = replace(source.spec, observation=dict(reversed(source.spec.observation.items())))


def told(source):
    source.settings["path"] = str(source.path)


def per_key(source):
    source.settings["keys"] = source.asked


def shorter(source):
    if source.asked is not None:
        source.files = source.files[1:]


def other_bounds(source):
    if source.asked == ["place"]:
        source.spec = replace(source.spec, privileged=("place",))


def drifting(source, found):
    return replace(found, info={"call": float(next(calls))})


def renamed(source, found):
    return found if source.asked is None else replace(found, labels=())


def not_a_number(source, found):
    return replace(found, info={"a": NAN})


BREAKS = [
    ("config", Bare, "fields without a comment: scale"),
    ("config", Rounding, "is another Config"),
    ("spec", changed(lambda s: setattr(s, "files", [])), "there are no episodes"),
    ("spec", with_spec(observation={}), "its spec has no observations"),
    ("spec", with_spec(env=7), "spec.env"),
    ("spec", with_spec(action=ActionSpec((1.0,) * 2, (1.0,) * 2)), "bounds of actions are"),
    ("settings", changed(told), "they hold the path"),
    ("settings", changed(lambda s: setattr(s, "settings", {})), "they lack scale"),
    ("episodes", changed(reversed_keys), "has keys ['place', 'speed'], its spec ['speed', 'pl"),
    ("episodes", changed(None, rows("place", lambda v: v[:, :1])), "'place' of episode 0 is float"),
    ("episodes", changed(None, rows("speed", lambda v: v.astype(float))), "is float64 (3,), need"),
    ("episodes", changed(None, rows("rewards", lambda v: v * NAN)), "'rewards' of episode 0 is no"),
    ("bounds", changed(None, rows("actions", lambda v: 3 * v)), "those of episode 0 are from"),
    ("stored", changed(None, not_a_number), "info of episode 0 changes"),
    ("deterministic", changed(None, drifting), "differs a second time"),
    ("deterministic", changed(lambda s: s.files.__delitem__(slice(next(calls) % 2))), "episodes"),
    ("keys", changed(shorter), "2 episodes of ['place'], 3 of all"),
    ("keys", changed(reversed_keys), "['speed', 'place'] of ['place', 'speed']"),
    ("keys", changed(other_bounds), "privileged keys differ"),
    ("keys", changed(per_key), "settings depend on the keys"),
    ("keys", changed(None, renamed), "labels differs with keys ['place']"),
    ("keys", AllOfNone, "keys=[] is accepted, need ConfigError"),
    ("keys", Careless, "keys=['no_such_observation'] is accepted"),
    ("keys", Silent, "does not list ['place', 'speed']"),
    ("counts", changed(lambda s: setattr(s, "notes", ["a\nb"])), "a note is not one line"),
    ("counts", changed(lambda s: setattr(s, "counts", {"rows": {"a": 1}})), "do not have those k"),
    ("counts", changed(lambda s: setattr(s, "counts", {"rows": {"kept": -1}})), "'kept' is -1"),
    ("counts", changed(lambda s: s.counts["episodes"].update({"": 1})), "the reason '' is not one"),
    ("absent", Anywhere, "is accepted, need SourceError"),
    ("absent", refusing("no data"), "the error does not name"),
    ("absent", refusing("{path}: none\nat all"), "the error is not one line"),
    ("damaged", Verbose, "is not one line"),
    ("damaged", Tolerant, "no file is needed"),
]


@pytest.fixture
def of(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for seed in range(3):
        (data / f"{seed}.json").write_text(json.dumps({"seed": seed}))
    return lambda made: Subject("source", "toy", made, made.Config(), data=data)


def test_a_source_that_keeps_all_passes(of):
    assert [r for r in run(of(Kept)) if r.status != "ok"] == []


@pytest.mark.parametrize("check, made, found", BREAKS, ids=[f"{b[0]}-{b[2]}" for b in BREAKS])
def test_what_is_broken_is_found(check, made, found, of):
    with pytest.raises((Broken, LatentplanError)) as raised:
        checks("source")[check](of(made))
    assert found in str(raised.value)


def test_a_crash_at_a_damaged_file_is_a_failure_with_its_line(of):
    (found,) = (r for r in run(of(Crashing)) if r.status == "FAILED")
    assert found.found.startswith("JSONDecodeError: ")


def test_a_damaged_episode_of_the_data_is_left_out(of):
    subject = of(Kept)
    (subject.data / "1.json").write_text("damaged")
    assert {r.status for r in run(subject)} == {"ok"}
    for file in subject.data.iterdir():
        file.write_text("damaged")
    with pytest.raises(SourceError, match="is damaged"):
        checks("source")["episodes"](subject)


def test_a_source_that_reports_nothing_has_no_counts_to_check(of):
    def silent(source):
        del source.notes, source.counts

    with pytest.raises(NotApplicable, match="counts nothing"):
        checks("source")["counts"](of(changed(silent)))


def test_each_check_can_fail():
    assert {check for check, _, _ in BREAKS} == checks("source").keys()
