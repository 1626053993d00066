"""`latentplan train videoworld`: a model of several parts, trained one after the other.

Each stage has a folder RUN/stages/<stage>-<digest>, a run folder like any other; the digest is of
everything that it depends on: its settings, the data, the stages before it. So a stage that is done
is never done again, and one with other settings is made beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentplan import config
from latentplan.commands.progress import track
from latentplan.errors import CheckpointError, ConfigError, StoreError, TrainingError
from latentplan.files import replacing
from latentplan.training.loop import Training

if TYPE_CHECKING:
    from latentplan.data.store import ZarrStore
    from latentplan.models.videoworld.videoworld import VideoWorld
    from latentplan.types import Array, Spec

HELD_OUT = 256  # windows that held-out figures are of, where there are as many
COLLAPSED = 0.05  # share of a code book in use below which training stops
STAGE = "stage.json"  # in a stage's folder: all that it was made of


@dataclass(frozen=True)
class Stages:
    """How each part is trained. `window` is set by the part."""

    tokenizer: Training = field(default_factory=lambda: Training(steps=3000, batch=24, window=2))
    ldm: Training = field(default_factory=lambda: Training(steps=3000, batch=16))
    generator: Training = field(
        default_factory=lambda: Training(steps=4000, batch=32, clip=1.0, weight_decay=0.01)
    )
    inverse: Training = field(
        default_factory=lambda: Training(steps=1500, batch=64, clip=1.0, weight_decay=0.01)
    )
    dynamics: Training = field(default_factory=lambda: Training(steps=2000, batch=32, clip=1.0))
    cache: str = ""  # folder of the stages, which several runs may share; "": RUN/stages
    frozen: str = ""  # run whose tokenizer and latent dynamics model are taken as they are


@dataclass(frozen=True)
class Run:
    """What all stages of a run have in common."""

    folder: Path  # of the stages
    data: Mapping[str, Any]  # what tells this data set from another
    seed: int
    device: Any


def train(
    store: ZarrStore,
    folder: Path,
    *,
    model: VideoWorld.Config,
    stages: Stages,
    data: Mapping[str, Any],
    spec: Spec,
    seed: int,
    device: Any,
) -> dict[str, float]:
    """Train what is missing, write `best.safetensors` into `folder`, return the held-out figures.

    Raises ConfigError where episodes are too short for a part or lack sentences, TrainingError
    where a code book collapsed, CheckpointError where the folder of a stage holds something else,
    and as `training.loop.train`.
    """
    import torch

    from latentplan.data.store import ZarrStore
    from latentplan.models.videoworld import tokens
    from latentplan.models.videoworld.dynamics import TokenDynamics
    from latentplan.models.videoworld.generator import CODES, TOKENS, Generator
    from latentplan.models.videoworld.inverse import Inverse
    from latentplan.models.videoworld.ldm import LDM
    from latentplan.models.videoworld.videoworld import VideoWorld
    from latentplan.nn.sentences import embed
    from latentplan.tokenizers.vqvae import VQVAE
    from latentplan.training import checkpoint

    tasks = tokens.task_names(store, spoken=model.language)
    sentences = None
    if model.language:
        if not tasks:
            raise ConfigError(f"model.language: no episode in {store.path} has a sentence")
        sentences = embed(tasks)  # fails, if it does, before hours of training
    c = model.fitted(spec, tasks=tasks)
    check_lengths(store, c, stages)
    seen = replace(
        spec, observation={key: spec.observation[key] for key in c.images}, privileged=()
    )
    run = Run(Path(stages.cache) if stages.cache else folder / "stages", data, seed, device)
    digests: dict[str, str] = {}
    figures: dict[str, float] = {}
    frozen = Frozen(stages.frozen, seen, device=device) if stages.frozen else None

    def stage(
        name: str,
        build: Callable[[], Any],
        part: Any,
        training: Training,
        source: ZarrStore,
        after: tuple[str, ...] = (),
        share: float = 1.0,
    ) -> Any:
        of = _made_of(run, name, part, training, [digests[each] for each in after])
        digests[name] = _digest(of)
        torch.manual_seed(seed)
        network = build().to(device)
        training = replace(training, window=network.context + 1)
        where = run.folder / f"{name}-{digests[name]}"
        check_stage(where, of)
        found = _stage(source, where, network, of=of, training=training, run=run, share=share)
        figures.update({f"{name}.{key}": value for key, value in found.items()})
        return network

    def look(name: str, build: Callable[[], Any], part: Any, training: Training) -> Any:
        """Return a part that sees pictures: the frozen one, or one of a stage of its own."""
        if frozen is None:
            return stage(name, build, part, training, store)
        digests[name] = _digest([name, frozen.digest, dict(data)])  # tokens are of these data
        return frozen.part(name, part)

    tokenizer = look("tokenizer", lambda: VQVAE(seen, c.tokenizer), c.tokenizer, stages.tokenizer)
    ldm = look("ldm", lambda: LDM(seen, c.ldm), c.ldm, stages.ldm)
    tokenizer.eval(), ldm.eval()
    spoken = ["sentences"] if model.language else []
    digests["sentences"] = _digest(tasks)
    of_tokens = _digest([digests["tokenizer"], digests["ldm"], tasks, *spoken])
    out = run.folder / f"tokens-{of_tokens}.zarr"
    done = len(ZarrStore.open(out)) if out.exists() else 0
    with track(len(store), "tokens", "episodes", done=done) as bar:
        written = tokens.tokenise(
            store,
            out,
            tokenizer=tokenizer,
            ldm=ldm,
            tasks=tasks,
            spoken=model.language,
            advance=bar.advance,
        )
    with written, ExitStack() as held:
        rows = int(written.ends[-1])
        for book, key, size in (
            ("tokenizer", TOKENS, tokenizer.vocabulary),
            ("ldm", CODES, ldm.codes),
        ):
            found = check_usage(
                f"{out}: {key}", written.rows(f"observation/{key}", 0, rows), size, book=book
            )
            figures[f"{book}.usage"] = found
        generator = stage(
            "generator",
            lambda: Generator(written.spec, c.generator, sentences=sentences),
            c.generator,
            stages.generator,
            written,
            ("tokenizer", "ldm", *spoken),
        )
        read = written
        if c.inverse.reads == "hidden":
            generator.eval()
            made = run.folder / f"states-{_digest([of_tokens, digests['generator']])}.zarr"
            done = len(ZarrStore.open(made)) if made.exists() else 0
            with track(len(store), "states", "episodes", done=done) as bar:
                read = tokens.add_states(written, made, generator, advance=bar.advance)
            held.enter_context(read)
        inverse = stage(
            "inverse",
            lambda: Inverse(read.spec, c.inverse, generator=generator),
            c.inverse,
            stages.inverse,
            read,
            ("generator",),
            c.inverse.labelled,
        )
        dynamics = stage(
            "dynamics",
            lambda: TokenDynamics(written.spec, c.dynamics),
            c.dynamics,
            stages.dynamics,
            written,
            ("tokenizer",),
            c.inverse.labelled,
        )
    whole = VideoWorld(spec, c)
    whole.tokenizer, whole.ldm, whole.inverse, whole.dynamics = tokenizer, ldm, inverse, dynamics
    checkpoint.save(
        folder / "best.safetensors",
        whole,
        name="videoworld",
        step=stages.generator.steps,
        metrics=figures,
    )
    return figures


class Frozen:
    """The tokenizer and the latent dynamics model of another run, to be used as they are."""

    def __init__(self, run: str, spec: Spec, *, device: Any) -> None:
        """Load a run of VideoWorld for the pictures of `spec`.

        Raises CheckpointError where there is none, or one for other pictures.
        """
        from latentplan.training import checkpoint

        self.file = checkpoint.find(run)
        loaded = checkpoint.load(self.file, device=str(device))
        if loaded.name != "videoworld":
            raise CheckpointError(
                f"training.frozen: {self.file} is of {loaded.name}, no videoworld"
            )
        found = {key: a.shape for key, a in loaded.spec.observation.items()}
        need = {key: a.shape for key, a in spec.observation.items()}
        found = {key: shape for key, shape in found.items() if key in loaded.config.images}
        if found != need:
            raise CheckpointError(
                f"training.frozen: {self.file} sees pictures {found}, the data have {need}"
            )
        self.model = loaded.model
        self.digest = hashlib.sha256(self.file.read_bytes()).hexdigest()

    def part(self, name: str, wanted: Any) -> Any:
        """Return a part; CheckpointError where it is of other settings than those `wanted`."""
        part = getattr(self.model, name)
        found, need = config.to_values(part.config), config.to_values(wanted)
        differ = [f"{key} {found[key]}" for key in need if found[key] != need[key]]
        if differ:
            raise CheckpointError(
                f"training.frozen: {name} of {self.file} has {', '.join(differ)}; set the same as "
                f"model.{name}.{differ[0].split()[0]} here"
            )
        return part


def check_lengths(store: ZarrStore, model: VideoWorld.Config, stages: Stages) -> None:
    """Raise ConfigError where no episode is as long as a part's training window."""
    from latentplan.data.windows import is_test

    if len(store) == 0:
        raise StoreError(f"{store.path}: is empty; collect some episodes first")
    lengths = np.diff(store.ends, prepend=0)
    context, chunk = model.generator.context, model.inverse.chunk
    for setting, found, need, training in (
        ("ldm.horizon", model.ldm.horizon, model.ldm.span + 1, stages.ldm),
        ("generator.context", context, context, stages.generator),
        ("inverse.chunk", chunk, chunk + 1, stages.inverse),
    ):
        held_out = is_test(np.arange(len(store)), training.held_out)
        for split, episodes in (("training", ~held_out), ("held-out", held_out)):
            longest = int(lengths[episodes].max(initial=0))
            if longest < need:
                raise ConfigError(
                    f"model.{setting}: {found} needs clips of {need} observations, the longest of "
                    f"{int(episodes.sum())} {split} episodes in {store.path} has {longest}; "
                    "set it lower, or collect more or longer episodes"
                )


def check_usage(where: str, ids: Array, size: int, *, book: str) -> float:
    """Return the share of a code book that ids (n, k) use; TrainingError where it collapsed.

    Of a book of `size` codes n k ids can use no more than n k.
    """
    used = len(np.unique(ids))
    share = used / min(size, max(1, ids.size))
    if share < COLLAPSED:
        raise TrainingError(
            f"{where}: the code book collapsed: {used} of {size} codes are in use ({share:.1%}), "
            f"need {COLLAPSED:.0%}; set training.{book}.steps higher, or fewer model.{book}.levels"
        )
    return used / size


def check_stage(folder: Path, of: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a stage's folder was made of other things than `of`.

    Such as one that was copied under another digest, or edited.
    """
    file = folder / STAGE
    if not file.exists():
        return
    try:
        found = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as e:
        raise CheckpointError(f"{file}: cannot be read ({e}); delete {folder}") from None
    differ = sorted(key for key in {*of, *found} if found.get(key) != of.get(key))
    if differ:
        raise CheckpointError(
            f"{folder}: is of another stage: {', '.join(differ)} in {STAGE} differ from what this "
            "run is made of; delete the folder, it is made again"
        )


def _stage(
    store: ZarrStore,
    folder: Path,
    network: Any,
    *,
    of: Mapping[str, Any],
    training: Training,
    run: Run,
    share: float,
) -> dict[str, float]:
    """Train a part to its end, or go on with it; it then has the weights of its best step."""
    from latentplan.data.windows import Windows
    from latentplan.training import checkpoint, state
    from latentplan.training.heldout import HeldOut
    from latentplan.training.loop import train, writing

    name, keys = of["stage"], [*network.spec.observation]
    held = Windows(
        store,
        length=training.window,
        batch=training.batch,
        split="test",
        test_fraction=training.held_out,
        keys=keys,
    )
    count = max(1, min(HELD_OUT, len(held)) // training.batch)
    done = state.steps_done(folder)
    if done < training.steps:
        windows = Windows(
            store,
            length=training.window,
            batch=training.batch,
            seed=run.seed,
            test_fraction=training.held_out,
            share=share,
            keys=keys,
            pin_memory=run.device.type == "cuda",
        )
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            config.save_yaml(
                folder / "config.yaml",
                {"model": config.to_values(network.config), "training": config.to_values(training)},
            )
            with replacing(folder / STAGE) as partial:
                partial.write_text(json.dumps(of, indent=1), encoding="utf-8")
        with track(training.steps, f"train {name}", "steps", done=done) as bar:
            train(
                network,
                windows,
                held_out=HeldOut([held[index] for index in range(count)]),
                run=folder,
                config=training,
                name=name,
                seed=run.seed,
                resume=True,
                advance=bar.advance,
            )
    best = folder / "best.safetensors"
    weights, header = checkpoint.read(best, format=checkpoint.FORMAT)
    for key, made in (("model", name), ("config", config.to_values(network.config))):
        if header[key] != made:
            raise CheckpointError(
                f"{best}: its {key} is not that of stage {name} here; delete {folder}, it is made "
                "again"
            )
    checkpoint.fill(network, weights, best)
    figures = {key: float(value) for key, value in header["metrics"].items()}
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    return figures


def _made_of(
    run: Run, name: str, part: Any, training: Training, after: list[str]
) -> dict[str, Any]:
    """Return all that a stage depends on."""
    return {
        "stage": name,
        "model": config.to_values(part),
        "training": config.to_values(training),
        "data": dict(run.data),
        "seed": run.seed,
        "after": after,
    }


def _digest(of: object) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:12]
