"""The dynamics of TECO over frames of tokens: codes of change, a long memory, a masked prior.

Yan et al., arXiv 2210.02396, section 3. A frame e_t is a grid of a frozen tokenizer's tokens:

    z_t = VQ(encoder(e_{t-1}, e_t))        codes of what changed, on a coarser grid
    h_t = transformer(z_{<t}, a_{<t})      block-causal attention over frames
    p(z_t | h_t)                           a masked prior
    p(e_t | z_t, h_t)                      the decoder, all tokens at once

The prior makes z_t consistent, and z_t the tokens of a frame. DropLoss computes the last two for a
few random frames a clip, while the transformer attends to all.

Differs, with `previous` (off in the paper): prior and decoder also read features of e_{t-1}, which
h_t scales and shifts (arXiv 1709.07871), and the decoder may copy its tokens by a gate (a pointer
network, arXiv 1506.03134), so that a still scene is right from the first step of training. Cells
in which no token changes have a code of their own, which is easy to predict. A share of the tokens
before is replaced in training, since imagined frames have errors, and a share of the frames is
decoded without codes. The code book follows the encoder by running means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Generator, Tensor, nn

from latentplan.errors import ConfigError, check_range
from latentplan.models.frame_tokens import TOKENS
from latentplan.models.teco.layers import CodeBook, Decoder, Grid, History
from latentplan.nn import images
from latentplan.nn.masked_prior import MaskedPrior
from latentplan.nn.quantizer import Quantized, usage
from latentplan.nn.scaling import ActionScaling
from latentplan.nn.transformer import Cache, Transformer
from latentplan.types import Batch, Loss, Moments, Spec


class TemporalDynamics(nn.Module):
    """A Learner over clips of tokens (t, K) and the actions between them."""

    targets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    scaled: tuple[str, ...] = ()

    @dataclass(frozen=True)
    class Config:
        """The networks, for two cores; the preset `teco_gpu` has the published sizes."""

        vocabulary: int = 0  # of the tokenizer, which sets it
        cameras: int = 0  # of the tokenizer, which sets them
        clip: int = 10  # frames of a training clip, the most that the transformer attends to
        context: int = 2  # frames that a planner gives
        embedding: int = 16  # numbers of a token
        channels: int = 48  # of the convolutions
        blocks: int = 1  # residual blocks of the encoder, twice as many of the decoder
        stride: int = 2  # tokens a side of a code
        codes: int = 64  # in the book
        code_width: int = 32  # numbers of a code in the book
        decay: float = 0.98  # of the running means of the book
        pool: int = 2  # codes a side of a position of the transformer over time
        action_width: int = 16  # numbers of an action there
        width: int = 96  # of that transformer
        layers: int = 2  # of it
        heads: int = 4  # of its attention
        dropout: float = 0.0  # share of its activations that training drops
        prior: MaskedPrior.Config = field(default_factory=MaskedPrior.Config)  # of the codes
        previous: bool = True  # whether frames are predicted from the tokens before as well
        noise: float = 0.01  # share of these tokens that training replaces by any
        code_dropout: float = 0.25  # share of the frames that training decodes without codes
        drop_loss: float = 0.9  # share of the frames of a clip without prior and decoder
        action_dropout: float = 0.1  # share of the clips whose actions are hidden
        label_smoothing: float = 0.01  # of the decoder's targets

        def __post_init__(self) -> None:
            """Raise ConfigError if a field is out of its range."""
            for name in ("embedding", "codes", "code_width", "stride", "pool", "action_width"):
                check_range(f"TECO.dynamics.{name}", getattr(self, name), 1)
            for name in ("vocabulary", "cameras", "blocks"):
                check_range(f"TECO.dynamics.{name}", getattr(self, name), 0)
            check_range("TECO.dynamics.clip", self.clip, 2)
            check_range("TECO.dynamics.context", self.context, 1, self.clip - 1)
            for name in ("width", "layers", "heads"):
                check_range(f"TECO.dynamics.{name}", getattr(self, name), 1)
            shares = ("noise", "code_dropout", "drop_loss", "action_dropout", "dropout", "decay")
            for name in shares:
                check_range(f"TECO.dynamics.{name}", getattr(self, name), 0.0, 1.0)
            check_range("TECO.dynamics.label_smoothing", self.label_smoothing, 0.0, 0.5)
            if self.width % (2 * self.heads) or self.channels % 8 or not self.channels:
                raise ConfigError(
                    f"TECO.dynamics.width: found {self.width} and {self.channels} channels, need "
                    f"a multiple of 2 heads={2 * self.heads} and one of 8"
                )

    def __init__(self, spec: Spec, config: Config) -> None:
        """Build the networks for a store of tokens."""
        super().__init__()
        c = self.config = config
        self.spec, self.window = spec, c.clip
        (self.tokens,) = spec.observation[TOKENS].shape  # K
        self.grid = Grid.of(self.tokens, c.cameras)
        if self.grid.side % (c.stride * c.pool):
            raise ConfigError(
                f"TECO.dynamics.stride: found {c.stride}, and pool {c.pool}, whose product does "
                f"not divide the {self.grid.side} tokens a side of a camera; set them lower"
            )
        self.side = self.grid.side // c.stride  # codes a side
        colours = c.cameras * c.embedding
        self.embed = nn.Embedding(c.vocabulary, c.embedding)
        self.frequencies = nn.Parameter(torch.zeros(self.tokens, c.vocabulary))  # of first frames
        sizes = {"patch": c.stride, "blocks": c.blocks}
        self.frame = images.down(colours, (c.channels,), **sizes)  # of one frame
        self.change = images.down(2 * colours, (c.channels,), **sizes)  # of two
        self.book = CodeBook(c.channels, codes=c.codes, width=c.code_width, decay=c.decay)
        self.scaling = ActionScaling(spec.action)
        self.action = nn.Linear(spec.action.size, c.action_width)
        self.no_action = nn.Parameter(torch.zeros(c.action_width))
        self.into = nn.Conv2d(c.channels + c.action_width, c.width, c.pool, c.pool)
        cells = (self.side // c.pool) ** 2  # positions a frame
        self.place = nn.Parameter(0.02 * torch.randn(cells, c.width))
        self.time = nn.Parameter(0.02 * torch.randn(c.clip - 1, 1, c.width))
        self.body = Transformer(
            c.width, layers=c.layers, heads=c.heads, dropout=c.dropout, span=cells
        )
        modulated = 2 * c.channels if c.previous else c.channels  # scale and shift, or h alone
        self.out = nn.ConvTranspose2d(c.width, modulated, c.pool, c.pool)
        self.mix = images.Residual(c.channels)
        self.prior = MaskedPrior(
            self.side**2, vocabulary=c.codes + 1, condition=c.channels, config=c.prior
        )
        self.decoder = Decoder(
            c.channels,
            cameras=c.cameras,
            vocabulary=c.vocabulary,
            stride=c.stride,
            blocks=2 * c.blocks,
            previous=colours if c.previous else 0,
        )

    def fit_statistics(self, actions: Moments, observations: Mapping[str, Moments]) -> None:
        """Scale actions by their statistics: see `protocols.Normalised`."""
        self.scaling.fit(actions)

    def loss(self, batch: Batch) -> Loss:
        """Return the cross-entropy of decoder and prior in nats a token, and the book's loss."""
        c, ids = self.config, batch.observations[TOKENS].long()  # b t k
        b, steps = len(ids), ids.shape[1] - 1
        maps, codes = self.posterior(ids)
        actions = self.embed_actions(batch.actions, hide=True)
        h = self.attend(self.first(maps), codes.vectors, actions)
        count = max(1, round((1 - c.drop_loss) * steps))
        kept = torch.rand(steps, device=ids.device).argsort()[:count]
        flat = (each[:, kept].flatten(0, 1) for each in (ids, ids[:, 1:], h, *codes[:2]))
        before, wanted, memory, vectors, wanted_codes = flat
        before = self._replaced(before)
        memory = self.remember(memory, before)
        prior = self.prior.loss(wanted_codes, _cells(memory))
        if self.training:
            absent = torch.rand(len(vectors), 1, 1, 1, device=ids.device) < c.code_dropout
            vectors = vectors.masked_fill(absent, 0)
        logits = self.decode(memory, vectors, before)
        nats = F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), label_smoothing=c.label_smoothing
        )
        first = self.frequencies.log_softmax(-1).expand(b, -1, -1)
        first_nats = F.nll_loss(first.flatten(0, 1), ids[:, 0].flatten())
        codes_a_token = self.prior.tokens / self.tokens  # both in nats a frame, then
        moved = wanted != before
        right = (logits.detach().argmax(-1) == wanted) & moved
        parts = {
            "decoder": nats.detach(),
            "prior": prior.nats.detach(),
            "prior_hits": prior.hits,
            "moved": right.sum() / moved.sum().clamp(min=1),
            **usage(codes.ids, c.codes + 1),
        }
        total = nats + codes_a_token * prior.nats + 0.01 * first_nats + codes.loss
        return Loss(total, parts)

    def log_prob(self, ids: Tensor, actions: Tensor | None) -> Tensor:
        """Return a lower bound (b, t) of the log-probability in nats of frames (b, t, K).

        That of the tokens and their codes together. The first frame, of which nothing is known, has
        independent tokens with their frequencies.
        """
        b, steps = len(ids), ids.shape[1] - 1
        places = torch.arange(self.tokens, device=ids.device)
        first = self.frequencies.log_softmax(-1)[places, ids[:, 0]].sum(-1)
        if not steps:
            return first[:, None]
        maps, codes = self.posterior(ids)
        h = self.attend(self.first(maps), codes.vectors, self.embed_actions(actions, like=ids))
        before, wanted = ids[:, :-1].flatten(0, 1), ids[:, 1:].flatten(0, 1)
        memory = self.remember(h.flatten(0, 1), before)
        prior = self.prior.log_prob(codes.ids.flatten(0, 1), _cells(memory))
        logits = self.decode(memory, codes.vectors.flatten(0, 1), before)
        nats = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        after = prior - nats.view_as(wanted).sum(-1)
        return torch.cat([first[:, None], after.view(b, steps)], dim=1)

    def posterior(self, ids: Tensor) -> tuple[Tensor, Quantized]:
        """Return maps (b, t, c, g, g) of tokens (b, t, K), and codes z_2 .. z_t of the changes.

        Their vectors are (b, t - 1, channels, y, x), their ids (b, t - 1, y x).
        """
        maps = self.embed_maps(ids)
        pairs = torch.cat([maps[:, :-1], maps[:, 1:]], dim=2)
        flat = self.change(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
        vectors, codes, loss = self.book(flat.movedim(2, -1), self._changed(ids))
        return maps, Quantized(vectors.movedim(-1, 2), codes.flatten(2), loss)

    def _changed(self, ids: Tensor) -> Tensor:
        """Return in which cells (b, t - 1, y, x) a token (b, t, K) changes; in the paper all."""
        (v, _), s, y = self.grid, self.config.stride, self.side
        differ = ids[:, 1:] != ids[:, :-1]
        cells = rearrange(differ, "b t (v y p x q) -> b t y x (v p q)", v=v, y=y, p=s, x=y, q=s)
        return cells.any(-1) | (not self.config.previous)

    def embed_maps(self, ids: Tensor) -> Tensor:
        """Return (..., cameras embedding, g, g) of ids (..., K)."""
        v, g = self.grid
        maps: Tensor = rearrange(self.embed(ids), "... (v y x) d -> ... (v d) y x", v=v, y=g)
        return maps

    def first(self, maps: Tensor) -> Tensor:
        """Return features (b, 1, channels, y, x) of the first frame, which is not quantised."""
        out: Tensor = self.frame(maps[:, 0])
        return out[:, None]

    def embed_actions(
        self, actions: Tensor | None, *, like: Tensor | None = None, hide: bool = False
    ) -> Tensor:
        """Return (b, t - 1, d) of actions (b, t - 1, A); of None as many as frames (b, t, ...).

        With `hide` those of some clips are hidden in training.
        """
        if actions is None:
            assert like is not None
            return self.no_action.expand(len(like), like.shape[1] - 1, -1)
        found: Tensor = self.action(self.scaling(actions))
        if hide and self.training:
            hidden = torch.rand(len(found), 1, 1, device=found.device) < self.config.action_dropout
            found = torch.where(hidden, self.no_action, found)
        return found

    def attend(self, first: Tensor, vectors: Tensor, actions: Tensor) -> Tensor:
        """Return h (b, t - 1, c, y, x) of frames 2 to t of a clip.

        Given features of the first, code vectors (b, t - 1, ...) of the others, of which the last
        are not attended to, and embedded actions (b, t - 1, d).
        """
        known = torch.cat([first, vectors[:, :-1]], dim=1)
        return self._out(self.body(self._into(known, actions)))

    def remember(self, h: Tensor, before: Tensor) -> Tensor:
        """Return (n, channels, y, x), from which frames are predicted.

        Of h (n, channels, y, x) and the tokens `before` (n, K); with `previous` h has twice as many
        channels, the scale and the shift of features of these.
        """
        if self.config.previous:
            scale, shift = h.chunk(2, dim=1)
            h = self.frame(self.embed_maps(before)) * (1 + scale) + shift
        memory: Tensor = self.mix(h)
        return memory

    def decode(self, memory: Tensor, vectors: Tensor, before: Tensor) -> Tensor:
        """Return logits (n, K, vocabulary) of frames, given the tokens (n, K) before them."""
        previous = self.embed_maps(before) if self.config.previous else None
        found: tuple[Tensor, Tensor | None] = self.decoder(memory, vectors, previous)
        logits, gate = found
        return logits if gate is None else logits.scatter_add(-1, before[..., None], gate)

    @torch.no_grad()
    def begin(self, ids: Tensor, actions: Tensor | None) -> History:
        """Return the history of frames (n, T, K), at most a clip, and the actions between them."""
        maps, codes = self.posterior(ids) if ids.shape[1] > 1 else (self.embed_maps(ids), None)
        known = self.first(maps)
        if codes is not None:
            known = torch.cat([known, codes.vectors], dim=1)
        cache = Cache(self.body, len(ids), self.time.shape[0] * len(self.place))
        if ids.shape[1] > 1:
            self.body(self._into(known[:, :-1], self.embed_actions(actions, like=ids)), cache)
        return History(ids, actions, known[:, -1], cache)

    @torch.no_grad()
    def advance(
        self,
        history: History,
        action: Tensor | None,
        *,
        temperature: float = 0.0,
        generator: Generator | None = None,
        draft: int | None = None,
    ) -> Tensor:
        """Add the frame after `action` (n, A) to a history; return its logits (n, K, vocabulary).

        A history as long as a clip continues from its last half. `draft` is that of
        `MaskedPrior.sample`.
        """
        self._shorten(history)
        at, before = history.tokens.shape[1] - 1, history.tokens[:, -1]
        sent = None if action is None else action[:, None]
        like = history.tokens[:, -1:].expand(-1, 2, -1)
        x = self._into(
            history.newest[:, None], self.embed_actions(sent, like=like), start=at
        )
        memory = self.remember(self._out(self.body(x, history.cache))[:, 0], before)
        codes = self.prior.sample(
            _cells(memory), temperature=temperature, generator=generator, draft=draft
        )
        history.newest = rearrange(self.book.vectors(codes), "n (y x) c -> n c y x", y=self.side)
        logits = self.decode(memory, history.newest, before)
        after = logits.argmax(-1)
        history.tokens = torch.cat([history.tokens, after[:, None]], dim=1)
        if history.actions is not None and sent is not None:
            history.actions = torch.cat([history.actions, sent], dim=1)
        return logits

    def _shorten(self, history: History) -> None:
        """Let a history that is as long as a clip begin with the last half of its frames."""
        clip = self.config.clip
        if history.tokens.shape[1] < clip:
            return
        start = clip - max(1, clip // 2)
        sent = None if history.actions is None else history.actions[:, start:]
        vars(history).update(vars(self.begin(history.tokens[:, start:], sent)))

    def _into(self, known: Tensor, actions: Tensor, *, start: int = 0) -> Tensor:
        """Return positions (b, t p, width) of code maps (b, t, ...) and embedded actions."""
        b, t, _, y, x = known.shape
        sent = actions[..., None, None].expand(-1, -1, -1, y, x)
        maps = self.into(torch.cat([known, sent], dim=2).flatten(0, 1))
        cells = rearrange(maps, "(b t) w y x -> b t (y x) w", b=b)
        out: Tensor = cells + self.place + self.time[start : start + t]
        return out.flatten(1, 2)

    def _out(self, x: Tensor) -> Tensor:
        """Return maps (b, t, c, y, x) of positions (b, t p, width)."""
        y = self.side // self.config.pool
        maps = self.out(rearrange(x, "b (t y x) w -> (b t) w y x", y=y, x=y))
        out: Tensor = rearrange(maps, "(b t) c y x -> b t c y x", b=len(x))
        return out

    def _replaced(self, ids: Tensor) -> Tensor:
        """Return ids (n, K) of which training replaces a share."""
        if not self.training or not self.config.noise:
            return ids
        share = 2 * self.config.noise * torch.rand(len(ids), 1, device=ids.device)
        other = torch.randint_like(ids, self.config.vocabulary)
        return torch.where(torch.rand(ids.shape, device=ids.device) < share, other, ids)


def fitted(config: TemporalDynamics.Config, *, vocabulary: int, cameras: int) -> (
    TemporalDynamics.Config
):
    """Return the config for a tokenizer; ConfigError if it was made for another vocabulary."""
    found = config.vocabulary
    if found not in (0, vocabulary):
        raise ConfigError(
            f"TECO.dynamics.vocabulary: found {found}, the tokenizer has {vocabulary} ids; leave "
            "it out, or take the tokenizer that the dynamics was trained with"
        )
    return replace(config, vocabulary=vocabulary, cameras=cameras)


def _cells(maps: Tensor) -> Tensor:
    """Return (n, y x, c) of maps (n, c, y, x)."""
    return rearrange(maps, "n c y x -> n (y x) c")
