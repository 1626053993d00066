"""`latentplan collect`: episodes of an env, into a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from latentplan.commands.options import Overrides, Seed, Store, number
from latentplan.errors import Interrupted

if TYPE_CHECKING:
    from latentplan.api.collect import Collected

EXAMPLE = "latentplan collect rope --episodes 500 --out rope.zarr --workers 2"


def command(
    env: Annotated[
        str, typer.Argument(metavar="ENV", help="An env or a preset of one; see latentplan list.")
    ],
    episodes: Annotated[int, number("How many the store shall hold in the end.")],
    out: Store,
    workers: Annotated[
        int | None, number("Processes; the data is the same. Default: one a core.")
    ] = None,
    seed: Seed = 0,
    policy: Annotated[str, typer.Option(help="The policy that chooses actions.")] = "random",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Workers on a Ray cluster: HOST:PORT, auto, or local (when left out).",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Collect episodes of an env into a store."""
    from latentplan.api.collect import collect
    from latentplan.commands.progress import Bars

    try:
        with Bars() as bars:
            found = collect(
                env,
                out=out,
                episodes=episodes,
                policy=policy,
                workers=workers,
                seed=seed,
                ray=ray,
                overrides=overrides or (),
                on_progress=bars,
            )
    except Interrupted as e:
        print(summary(e.result))
        raise
    print(summary(found))


def summary(found: Collected) -> str:
    """Return what a store holds and what was added, in one line."""
    rate = found.new_transitions / max(found.seconds, 1e-9)
    parts = [
        f"{found.store}: {found.episodes} episodes, {found.transitions} transitions",
        f"new {found.new_episodes} episodes, {found.new_transitions} transitions at {rate:.1f}/s",
        f"{found.unstable} unstable attempts dropped",
    ]
    if found.refused is not None:
        parts.append(f"{found.refused:.0f} actions refused")
    parts += [f"{size:.0f} bytes an image {key}" for key, size in found.image_bytes.items()]
    return "; ".join(parts)
