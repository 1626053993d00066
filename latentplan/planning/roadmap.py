"""Subgoals from a graph of stored observations, for goals that are too far to aim at directly.

Search on the replay buffer (Eysenbach, Salakhutdinov and Levine, arXiv 1906.05253) and
semi-parametric topological memory (Savinov, Dosovitskiy and Koltun, arXiv 1803.00653): nodes are
stored observations, a directed edge leads to what an episode reached a few actions later, and to
nodes whose latents are near. The shortest path gives the next subgoal, which any planner of goal
observations aims at. Differs from both: the length of an edge between episodes is read from the
latents themselves, whose distance grows with the actions between two of an episode; there is no
network of distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, PlanningError, StoreError, check_range
from latentplan.nn.observations import checked, device_of, encode
from latentplan.protocols import Dynamics
from latentplan.types import Array, Goal, Observation

BLOCK = 1024  # nodes compared with all others at a time


class Roadmap:
    """Stored observations, their latents, and how many actions lead from one to another."""

    @dataclass(frozen=True)
    class Config:
        """The store, the edges, and when a subgoal is replaced."""

        store: str = ""  # episodes of the scene that is planned in; "": aim at the goal itself
        nodes: int = 4000  # most observations that are kept, evenly spread over the store
        neighbours: int = 8  # near nodes of other episodes that a node leads to
        near: float = 1.0  # largest distance of such a node, in that of one action
        reach: int = 4  # actions of an edge within an episode, at most
        ahead: int = 8  # actions to a subgoal along the path, about
        patience: int = 16  # actions after which a subgoal that is not reached is replaced, and
        # the edges to it become as much longer for the rest of the episode

        def __post_init__(self) -> None:
            """Raise ConfigError if a setting is out of its range."""
            check_range("Roadmap.nodes", self.nodes, 2, 1_000_000)
            check_range("Roadmap.neighbours", self.neighbours, 0, 1000)
            check_range("Roadmap.near", self.near, 0.0, 1000.0)
            for name in ("reach", "ahead", "patience"):
                check_range(f"Roadmap.{name}", getattr(self, name), 1, 10_000)

    def __init__(self, model: Dynamics, config: Config) -> None:
        """Encode the store's observations and connect them.

        Raises StoreError if the store is empty, ConfigError if its observations are not the
        model's.
        """
        self.config, self._model = config, model
        with ZarrStore.open(config.store) as store:
            self._rows, ends = _chosen(store, model, config.nodes)
            self.latents = _encoded(store, model, self._rows)  # n d
            self._episodes = np.searchsorted(ends, self._rows, side="right")
        self.scale = self._distances_of_steps()
        self.edges = self._connected()

    def observation(self, node: int) -> Observation:
        """Return the stored observation of a node."""
        row = int(self._rows[node])
        with ZarrStore.open(self.config.store) as store:
            return {
                key: store.rows(f"observation/{key}", row, row + 1)[0]
                for key in self._model.spec.observation
            }

    def steps(self, distance: Array) -> Array:
        """Return about how many actions latents of a distance are apart, at least 1."""
        count = np.arange(1, len(self.scale) + 1)
        slope = self.scale[-1] / count[-1]
        beyond = count[-1] + (distance - self.scale[-1]) / max(slope, 1e-9)
        found: Array = np.where(
            distance > self.scale[-1], beyond, np.interp(distance, self.scale, count)
        )
        return found

    def towards(self, goal: Tensor) -> Routes:
        """Return the shortest paths of all nodes to a goal's latent (d,)."""
        return Routes(self, goal)

    def near(self, latent: Tensor) -> Near:
        """Return the nearest nodes of a latent (d,), and the actions to them."""
        away = (self.latents - latent.cpu()).norm(dim=1).numpy()
        count = min(self.config.neighbours + 1, len(away))
        nodes = np.argpartition(away, count - 1)[:count]
        return Near(nodes, self.steps(away[nodes]))

    def _distances_of_steps(self) -> Array:
        """Return the median distance of latents 1 to `reach` stored actions apart, rising."""
        medians, stride = [], int(self._rows[1] - self._rows[0]) if len(self._rows) > 1 else 1
        for k in range(1, self.config.reach + 1):
            shift = max(round(k / stride), 1)
            same = self._episodes[shift:] == self._episodes[:-shift]
            moved = (self.latents[shift:] - self.latents[:-shift]).norm(dim=1)
            moved = moved[torch.from_numpy(same)]
            medians.append(float(moved.median()) * k / (shift * stride) if len(moved) else 0.0)
        rising: Array = np.maximum.accumulate(medians)
        return rising

    def _connected(self) -> coo_array:
        """Return the lengths of all edges, in actions."""
        c, n = self.config, len(self._rows)
        starts, ends, lengths = [], [], []
        for shift in range(1, c.reach + 1):
            length = self._rows[shift:] - self._rows[:-shift]
            same = self._episodes[shift:] == self._episodes[:-shift]
            (at,) = np.nonzero(same & (length <= c.reach))
            starts.append(at)
            ends.append(at + shift)
            lengths.append(length[at].astype(float))
        count = min(c.neighbours, n - 1)
        for first in range(0, n if count else 0, BLOCK):
            block = slice(first, first + BLOCK)
            away = torch.cdist(self.latents[block], self.latents)
            own = torch.from_numpy(self._episodes[block][:, None] == self._episodes)
            near, nodes = away.masked_fill(own, torch.inf).topk(count, largest=False)
            length = self.steps(near.numpy())
            row, column = np.nonzero(near.numpy() <= c.near * self.scale[0])
            starts.append(row + first)
            ends.append(nodes.numpy()[row, column])
            lengths.append(length[row, column])
        places = (np.concatenate(starts), np.concatenate(ends))
        return coo_array((np.concatenate(lengths), places), shape=(n, n))


class Near(NamedTuple):
    """Nodes and the actions to them."""

    nodes: Array  # (k,)
    length: Array  # (k,)


class Routes:
    """The shortest paths to one goal, and the subgoal that is aimed at."""

    def __init__(self, roadmap: Roadmap, goal: Tensor) -> None:
        """Take a graph and the latent (d,) of the goal, which becomes its last node."""
        self._map = roadmap
        self.goal = n = len(roadmap.latents)  # number of the goal, after those of the nodes
        edges, last = roadmap.edges, roadmap.near(goal)
        starts = np.r_[edges.row, last.nodes]
        ends = np.r_[edges.col, np.full(len(last.nodes), n)]
        lengths = np.r_[edges.data, last.length]
        self._to = coo_array((lengths, (ends, starts)), shape=(n + 1, n + 1)).tocsr()  # reversed
        self._search()
        self._path: list[int] = []  # to the subgoal that is aimed at
        self._age = 0

    def subgoal(self, latent: Tensor) -> int:
        """Return the node to aim at from a latent (d,), or `goal`.

        It stays the same until it is reached, to within an action, or for `patience` actions; edges
        to one that is not reached become longer (as Emmons et al., arXiv 2003.06417, drop them).
        Raises PlanningError if no path leads to the goal.
        """
        self._age += 1
        late = self._age > self._map.config.patience
        if not self._path or late or self._reached(latent):
            if late:
                self._lengthen()
            self._path, self._age = self._next(latent), 0
        return self._path[-1]

    def path(self, latent: Tensor) -> list[int]:
        """Return the nodes on the way from a latent (d,); the last is `goal`."""
        near = self._map.near(latent)
        total = near.length + self._left[near.nodes]
        if not np.isfinite(total).any():
            raise PlanningError(
                f"roadmap.store: no path of its {self.goal} nodes leads to the goal; collect more "
                "episodes of this scene, or set reach or neighbours higher"
            )
        path = [int(near.nodes[total.argmin()])]
        while path[-1] != self.goal:
            path.append(int(self._following[path[-1]]))
        return path

    def _search(self) -> None:
        """Find the actions left from each node (n + 1,), and the next node on the way (n + 1,)."""
        self._left, self._following = dijkstra(
            self._to, indices=self.goal, return_predecessors=True
        )

    def _lengthen(self) -> None:
        """Lengthen the edges to a subgoal that was not reached in time."""
        pairs = list(zip(self._path, self._path[1:], strict=False))
        for start, end in pairs:
            self._to[end, start] += self._map.config.patience
        if pairs:
            self._search()

    def _next(self, latent: Tensor) -> list[int]:
        """Return the path to the first node that is `ahead` actions away, or to the goal."""
        path = self.path(latent)
        done = self._left[path[0]] - self._left[path]  # actions on the way
        far = np.flatnonzero(done >= self._map.config.ahead)
        return path[: far[0] + 1] if len(far) else path

    def _reached(self, latent: Tensor) -> bool:
        if self._path[-1] == self.goal:
            return False
        away = (self._map.latents[self._path[-1]] - latent.cpu()).norm()
        return bool(away <= self._map.scale[0])


class Guide:
    """The subgoals of a policy on the way to its goal: see `Roadmap`."""

    def __init__(self, model: Dynamics, config: Roadmap.Config) -> None:
        """Build the graph; raises as `Roadmap` does."""
        self.roadmap = Roadmap(model, config)
        self._model = model
        self._goal = Goal()
        self._latent: Tensor | None = None
        self._routes: Routes | None = None
        self._node: int | None = None  # aimed at; None before the first

    def aim(self, goal: Goal) -> None:
        """Set the goal; ConfigError unless it has an observation."""
        if goal.observation is None:
            raise ConfigError(
                "roadmap.store: found a goal without an observation, needs one; give an image of "
                'the goal, or set the store to ""'
            )
        inputs = checked("goal.observation", self._model, goal.observation)
        self._latent = encode(self._model, inputs)
        self._goal = goal
        self.restart()

    def restart(self) -> None:
        """Start an episode: choose the first subgoal again."""
        self._node = None
        if self._latent is not None:
            self._routes = self.roadmap.towards(self._latent[0, 0])

    def follow(self, latent: Tensor) -> Goal | None:
        """Return the subgoal to aim at from a latent (d,) on; None to keep the last one."""
        assert self._routes is not None  # `aim` comes first
        node = self._routes.subgoal(latent)
        if node == self._node:
            return None
        self._node = node
        if node == self._routes.goal:
            return self._goal
        return Goal(observation=self.roadmap.observation(node), text=self._goal.text)


def _chosen(store: ZarrStore, model: Dynamics, most: int) -> tuple[Array, Array]:
    """Return the rows (n,) that become nodes, and the ends of episodes."""
    if len(store) == 0:
        raise StoreError(f"roadmap.store: {store.path} is empty; collect some episodes first")
    for key, array in model.spec.observation.items():
        found = store.spec.observation.get(key)
        if found is None or (found.shape, found.dtype) != (array.shape, array.dtype):
            has = "none" if found is None else f"{found.dtype} {found.shape}"
            raise ConfigError(
                f"roadmap.store: {store.path} has {has} as observation {key!r}, the model reads "
                f"{array.dtype} {array.shape}; take a store of the same env and settings"
            )
    rows = int(store.ends[-1])
    return np.arange(0, rows, -(-rows // most)), np.asarray(store.ends)


@torch.no_grad()
def _encoded(store: ZarrStore, model: Dynamics, rows: Array) -> Tensor:
    """Return the latents (n, d) of some rows of a store."""
    device, found = device_of(model), []
    starts = np.r_[0, store.ends[:-1]]
    for start, end in zip(starts.tolist(), store.ends.tolist(), strict=True):
        wanted = rows[(rows >= start) & (rows < end)] - start
        if not len(wanted):
            continue
        seen = {
            key: torch.from_numpy(store.rows(f"observation/{key}", start, end)).to(device)[None]
            for key in model.spec.observation
        }
        found.append(model.encode(seen)[0, torch.from_numpy(wanted)].float().cpu())
    return torch.cat(found)
