"""What a class or an object lacks for its kind, in one line, before it is used."""

import sys
from dataclasses import dataclass

import pytest
from toy import ToyEnv

from latentplan import contracts, registry
from latentplan.errors import ContractError, UnknownName


def without(base, *names):
    """Return a class that is `base` without some of its methods."""
    kept = {name: value for name, value in vars(base).items() if name not in names}
    return type("Pusher", (), kept)


def told(kind, made):
    with pytest.raises(ContractError) as found:
        contracts.check_class(kind, "pusher", made)
    return str(found.value)


@pytest.mark.parametrize(
    "kind, name", [(kind, name) for kind in registry.BUILT_IN for name in registry.BUILT_IN[kind]]
)
def test_every_registered_class_keeps_its_contract(kind, name):
    registry.get(kind, name)  # raises if it does not


@pytest.mark.parametrize("method", ["reset", "step", "snapshot", "restore", "distance", "oracle"])
def test_a_missing_method_is_named(method):
    contracts.check_class("env", "pusher", without(ToyEnv))
    assert told("env", without(ToyEnv, method)) == (
        f"env 'pusher': has no method {method}() (protocols.Env): add it"
    )


def test_all_missing_methods_are_named_at_once():
    found = told("env", without(ToyEnv, "snapshot", "restore"))
    assert found == "env 'pusher': has no methods snapshot(), restore() (protocols.Env): add them"


def test_a_method_that_takes_other_arguments_is_shown():
    class Old(ToyEnv):
        def reset(self, seed=None):
            return {}, {}

    assert told("env", Old) == (
        "env 'pusher': reset() must take reset(seed=..., options=...) (protocols.Env): "
        "found reset(seed=None)"
    )


def test_a_config_must_be_a_frozen_dataclass_with_defaults():
    class Plain(ToyEnv):
        class Config:
            pass

    class Thawed(ToyEnv):
        @dataclass
        class Config:
            size: int = 3

    class Bare(ToyEnv):
        @dataclass(frozen=True)
        class Config:
            size: int

    assert "Config is not a dataclass" in told("env", Plain)
    assert "Config is not frozen" in told("env", Thawed)
    assert "Config has fields without a default" in told("env", Bare)
    assert "found Config(size)" in told("env", Bare)


def test_a_planner_needs_a_config_and_an_env_does_not():
    class Planner:
        def plan(self, context, dynamics, **parts):
            pass

    assert "planner 'pusher': has no Config" in told("planner", Planner)
    bare = without(ToyEnv, "Config", "__init__")
    contracts.check_class("env", "pusher", bare)


def test_an_objective_must_be_callable_for_a_goal_a_context_and_a_model():
    class Distance:
        @dataclass(frozen=True)
        class Config:
            power: float = 1.0

        def __init__(self, config=None):
            pass

    class Early(Distance):
        def __call__(self, goal):
            pass

    class Static(Distance):
        @staticmethod
        def __call__(goal, context, model):
            pass

    missing = "objective 'pusher': has no method __call__() (protocols.ObjectiveFactory): add it"
    assert told("objective", Distance) == missing
    with pytest.raises(ContractError, match="has no method __call__"):
        contracts.check_object("objective", "pusher", Distance())
    assert told("objective", Early) == (
        "objective 'pusher': __call__() must take __call__(goal, context, model) "
        "(protocols.ObjectiveFactory): found __call__(goal)"
    )
    contracts.check_class("objective", "pusher", Static)
    contracts.check_object("objective", "pusher", Static())


def test_a_constructor_that_takes_other_arguments_is_shown():
    class Short(ToyEnv):
        def __init__(self):
            pass

    assert told("env", Short) == (
        "env 'pusher': cannot be called as Short(config) (protocols.Component): found Short()"
    )
    assert "need a class" in told("env", 3)


def test_an_object_must_have_its_attributes():
    class Blind(ToyEnv):
        def __init__(self, config=None):
            pass

    contracts.check_class("env", "pusher", Blind)
    with pytest.raises(ContractError, match=r"has no attribute data_spec .*: set it"):
        contracts.check_object("env", "pusher", Blind())
    contracts.check_object("env", "toy", ToyEnv())


def test_a_wrapper_is_checked_when_it_is_built():
    class Wrapper:
        def __init__(self, config=None):
            self.wrapped = ToyEnv()

        def __getattr__(self, name):
            return getattr(self.wrapped, name)

    contracts.check_class("env", "wrapped", Wrapper)
    contracts.check_object("env", "wrapped", Wrapper())


def test_a_class_of_a_file_in_this_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_envs.py").write_text("from toy import ToyEnv as Pusher\n")
    assert registry.load("env", "my_envs:Pusher") is ToyEnv
    with pytest.raises(UnknownName, match="module 'my_envs' has no 'Puller'"):
        registry.load("env", "my_envs:Puller")
    with pytest.raises(UnknownName, match="no module 'your_envs' is installed or in this folder"):
        registry.load("env", "your_envs:Pusher")


def test_a_plug_in_that_lacks_a_method_is_refused_on_first_use(monkeypatch):
    monkeypatch.setattr(registry, "BUILT_IN", {"env": {"pusher": f"{__name__}:Half"}})
    with pytest.raises(ContractError, match="env 'pusher': has no methods restore"):
        registry.get("env", "pusher")


Half = without(ToyEnv, "restore", "close")
