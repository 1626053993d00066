"""`latentplan.load`: a trained run as a policy to embed in a control loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentplan import config, registry
from latentplan.api.choice import Overrides, as_overrides
from latentplan.api.text_space import fit_text_space
from latentplan.errors import CheckpointError, ConfigError
from latentplan.models.ensemble import Ensemble
from latentplan.nn.torch_settings import own_torch_settings
from latentplan.objectives.subgoal import Subgoal
from latentplan.objectives.text import TextGoal
from latentplan.planning.generative import GenerativePolicy
from latentplan.planning.mpc import MPC
from latentplan.protocols import Constraint, DefaultPlanner, DefaultPolicy, Dynamics, Proposal
from latentplan.training import checkpoint
from latentplan.types import Part

POLICIES = ("generative", "mpc")  # that are made of a model


@own_torch_settings()
def load(
    run: Path | str | Sequence[Path | str],
    *,
    model: type | None = None,
    device: str = "cpu",
    policy: str | None = None,
    planner: str | None = None,
    objective: str | None = None,
    seed: int = 0,
    overrides: Overrides = (),
    proposals: Sequence[Proposal] = (),
    constraints: Sequence[Constraint] = (),
) -> MPC | GenerativePolicy:
    """Return a policy made of a trained run: set its `goal`, then let it `act`.

    `run` is a run folder, a .safetensors file or the name of a shipped checkpoint, or several of
    them: an ensemble. `model` is the class of a model that is not registered, such as one of a
    notebook; a checkpoint names it, but loading never imports it. `policy` is `mpc` or
    `generative`, by default the model's own (`mpc` for most, and whenever a planner is named).
    `planner` (of mpc, by default the model's own, cem for most) and `objective` (by default goal,
    for an ensemble pessimistic) are registry names or presets. `overrides` are `key=value` of the
    sections `planner`, `objective` and the policy's, such as `chunk=2` or
    `planner.candidates=1024`.
    Proposals compete in every plan, constraints go before its cost (see `protocols`). The device is
    never replaced by another. Raises CheckpointError, UnknownName, ConfigError or
    MissingDependency.
    """
    alone = isinstance(run, Path | str)
    runs = [run] if isinstance(run, Path | str) else list(run)
    if not runs:
        raise ConfigError("load.run: found no run, need at least one")
    check_names(policy=policy, planner=planner, objective=objective)
    members = [checkpoint.load(checkpoint.find(each), build=model, device=device) for each in runs]
    found = members[0]
    if not alone:
        found = replace(found, model=Ensemble([each.model for each in members]).eval())
    parts = choose(
        found.model,
        policy=policy,
        planner=planner,
        objective=objective or ("goal" if alone else "pessimistic"),
    )
    settings = config.load(parts.sections, preset=parts.presets, overrides=as_overrides(overrides))
    return assemble(
        found, parts, settings, seed=seed, proposals=proposals, constraints=constraints
    )


@dataclass(frozen=True)
class Parts:
    """What a policy is made of beside the model."""

    policy: str  # registry name
    planner: str  # name or preset, "" for a policy that has none
    classes: Mapping[str, Any]  # planner (if any), objective
    presets: Mapping[str, Mapping[str, Any]]  # values that differ from the classes' defaults
    sections: Mapping[str, type]  # of settings: planner (if any), objective, and the policy's name


def check_names(**named: str | None) -> None:
    """Raise UnknownName for a name of its kind that is neither registered nor a preset."""
    for kind, name in named.items():
        if name is not None:
            config.resolve(kind, name)


def choose(
    model: Dynamics,
    *,
    policy: str | None = None,
    planner: str | None = None,
    objective: str = "goal",
) -> Parts:
    """Return the parts that names or presets stand for; UnknownName for others.

    Raises ConfigError for a planner of a policy that has none.
    """
    if policy is None:
        own = model.default_policy if isinstance(model, DefaultPolicy) else "mpc"
        policy = own if planner is None else "mpc"
    preset = config.resolve("policy", policy)
    if preset.base not in POLICIES:
        known = " or ".join(POLICIES)
        raise ConfigError(f"load.policy: {policy!r} is not made of a model; take {known}")
    searches = preset.base == "mpc"
    if planner is not None and not searches:
        raise ConfigError(f"load.planner: policy {policy!r} has none; leave it out, or the policy")
    own = model.default_planner if isinstance(model, DefaultPlanner) else "cem"
    planner = (planner or own) if searches else ""
    names = {"planner": planner, "objective": objective} if planner else {"objective": objective}
    chosen = {kind: config.resolve(kind, name) for kind, name in names.items()}
    classes = {kind: registry.get(kind, each.base) for kind, each in chosen.items()}
    values: dict[str, dict[str, Any]] = {}
    for each in (*chosen.values(), preset):  # a planner's preset may set its objective, too
        for section, fields in each.values.items():
            values.setdefault(section, {}).update(fields)
    sections = {kind: each.Config for kind, each in classes.items()}
    sections[preset.base] = registry.get("policy", preset.base).Config
    return Parts(preset.base, planner, classes, values, sections)


def assemble(
    found: checkpoint.Checkpoint,
    parts: Parts,
    settings: Mapping[str, Any],
    *,
    seed: int,
    proposals: Sequence[Proposal] = (),
    constraints: Sequence[Constraint] = (),
) -> MPC | GenerativePolicy:
    """Return the policy of a loaded checkpoint, with one filled config a section of `parts`."""
    found.model.requires_grad_(False)  # gradients with respect to actions alone, then
    own, chosen = settings[parts.policy], settings["objective"]
    if isinstance(chosen, Subgoal.Config) and chosen.steps is None:
        planned = settings["planner"] if parts.planner else own
        chosen = replace(chosen, steps=planned.horizon)
    objective = parts.classes["objective"](chosen)
    if isinstance(objective, TextGoal) and objective.config.data:
        objective.space = fit_text_space(found.model, objective.config)
    more: dict[str, Any] = {
        "objective": objective,
        "seed": seed,
        "proposals": proposals,
        "constraints": constraints,
        "proposers": _proposers(own.proposer, found),
    }
    if not parts.planner:
        return GenerativePolicy(found.model, own, **more)
    planner = parts.classes["planner"](settings["planner"])
    return MPC(found.model, planner, config=own, **more)


def _proposers(part: Part, planned: checkpoint.Checkpoint) -> list[Any]:
    """Return the model of another run, if there is one.

    CheckpointError unless its actions are those of `planned`.
    """
    run = part.run
    if part.name:
        raise ConfigError(f"proposer.name: found {part.name!r}, need a trained run: proposer.run")
    if not run:
        return []
    device = next(planned.model.parameters()).device
    model = checkpoint.load(checkpoint.find(run), device=str(device)).model
    own, other = model.spec.action, planned.spec.action
    for name, found, need in (
        ("low", own.low, other.low),
        ("high", own.high, other.high),
        ("convention", own.convention, other.convention),
    ):
        if found != need:
            raise CheckpointError(
                f"proposer: the actions of {run!r} have {name} {found}, those of the planning "
                f"model {need}; take a run of the same env"
            )
    return [model.requires_grad_(False)]
