"""`latentplan.load`: a trained run as a planner to embed in a control loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from latentplan import config, registry
from latentplan.errors import CheckpointError, ConfigError
from latentplan.models.ensemble import Ensemble
from latentplan.planning.mpc import MPC
from latentplan.protocols import Constraint, Proposal
from latentplan.training import checkpoint


def load(
    run: Path | str | Sequence[Path | str],
    *,
    device: str = "cpu",
    planner: str | None = None,
    objective: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    proposals: Sequence[Proposal] = (),
    constraints: Sequence[Constraint] = (),
) -> MPC:
    """Return the MPC of a trained run: set its `goal`, then ask it to `act`.

    `run` is a run folder, a .safetensors file or the name of a shipped checkpoint, or several of
    them: an ensemble. `planner` and `objective` are registry names or presets; the planner is by
    default the model's own (`cem` for most), the objective `goal`, for an ensemble `pessimistic`.
    `overrides` are `key=value` of the sections `planner`, `objective` and `mpc`
    (`planner.candidates=1024`, `chunk=2`). Proposals compete in every plan, constraints go before
    its cost (see `protocols`). The device is never replaced by another. Raises CheckpointError,
    UnknownName, ConfigError or MissingDependency.
    """
    alone = isinstance(run, Path | str)
    runs = [run] if isinstance(run, Path | str) else list(run)
    if not runs:
        raise ConfigError("load.run: found no run, need at least one")
    planner = planner or own_planner(checkpoint.find(runs[0]))
    parts = choose(planner=planner, objective=objective or ("goal" if alone else "pessimistic"))
    presets = dict(parts.presets)
    if hasattr(parts.classes["objective"].Config, "members"):
        presets["objective"] = {**presets.get("objective", {}), "members": len(runs)}
    settings = config.load(parts.sections, preset=presets, overrides=overrides)
    members = [checkpoint.load(checkpoint.find(each), device=device) for each in runs]
    found = members[0]
    if not alone:
        found = replace(found, model=Ensemble([each.model for each in members]).eval())
    mpc = assemble(found, parts, settings, seed=seed)
    mpc.proposals, mpc.constraints = tuple(proposals), tuple(constraints)
    return mpc


def own_planner(file: Path) -> str:
    """Return the planner that the model of a checkpoint file is for: its `planner`, or `cem`."""
    name = checkpoint.read_header(file, format=checkpoint.FORMAT).get("name")
    model = registry.get("model", name) if name in registry.names("model") else None
    return str(getattr(model, "planner", "cem"))


@dataclass(frozen=True)
class Parts:
    """What a planner is made of beside the model."""

    classes: Mapping[str, Any]  # planner, objective
    presets: Mapping[str, Mapping[str, Any]]  # values that differ from the classes' defaults
    sections: Mapping[str, type]  # of settings: planner, objective, mpc


def choose(*, planner: str, objective: str) -> Parts:
    """Return the parts that two registry names or presets stand for; UnknownName for others."""
    names = {"planner": planner, "objective": objective}
    chosen = {kind: config.resolve(kind, name) for kind, name in names.items()}
    classes = {kind: registry.get(kind, preset.base) for kind, preset in chosen.items()}
    values: dict[str, dict[str, Any]] = {}
    for preset in chosen.values():  # a planner's preset may set its objective, too
        for section, fields in preset.values.items():
            values.setdefault(section, {}).update(fields)
    return Parts(
        classes,
        values,
        {kind: each.Config for kind, each in classes.items()} | {"mpc": MPC.Config},
    )


def assemble(
    found: checkpoint.Checkpoint, parts: Parts, settings: Mapping[str, Any], *, seed: int
) -> MPC:
    """Return the MPC of a loaded checkpoint, with one filled config a section of `parts`."""
    members = len(found.model.members) if isinstance(found.model, Ensemble) else 1
    asked = getattr(settings["objective"], "members", members)
    if asked != members:
        raise ConfigError(f"objective.members: found {asked}, for {members} run(s); leave it out")
    found.model.requires_grad_(False)  # gradients with respect to actions alone, then
    proposer = settings["mpc"].proposer
    return MPC(
        found.model,
        parts.classes["planner"](settings["planner"]),
        objective=partial(parts.classes["objective"], config=settings["objective"]),
        seed=seed,
        config=settings["mpc"],
        proposers=[_proposer(proposer, found)] if proposer else (),
    )


def _proposer(run: str, planned: checkpoint.Checkpoint) -> Any:
    """Return the model of `run`; CheckpointError where its actions are not those of `planned`."""
    device = next(planned.model.parameters()).device
    model = checkpoint.load(checkpoint.find(run), device=str(device)).model
    own, other = model.spec.action, planned.spec.action
    for name in ("low", "high", "convention"):
        if getattr(own, name) != getattr(other, name):
            raise CheckpointError(
                f"mpc.proposer: the actions of {run!r} have {name} {getattr(own, name)}, the "
                f"planning model's {getattr(other, name)}; take a run of the same env"
            )
    return model.requires_grad_(False)
