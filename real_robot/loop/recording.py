"""Recorded episodes of an arm: observations, and the actions that were really sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from latentplan.errors import RobotError
from latentplan.real_robot.link.remote import Watcher
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.types import Array, Episode, Observation


class Log:
    """The rows of one episode, in order of time."""

    def __init__(self) -> None:
        """Start empty."""
        self._seen: list[Observation] = []
        self._sent: list[Array] = []

    def __len__(self) -> int:
        """Return the number of actions so far."""
        return len(self._sent)

    def see(self, observation: Observation) -> None:
        """Append the observation before the first action, or after the last one."""
        self._seen.append({key: np.array(value) for key, value in observation.items()})

    def send(self, action: Array) -> None:
        """Append the action (A,) that was sent after the last observation."""
        self._sent.append(np.asarray(action, np.float32))

    def episode(self, *, info: Mapping[str, float] | None = None) -> Episode:
        """Return the episode; ShapeError unless an observation follows every action."""
        return Episode(
            observations={key: np.stack([o[key] for o in self._seen]) for key in self._seen[0]},
            actions=np.stack(self._sent),
            rewards=np.zeros(len(self._sent), np.float32),
            truncated=True,
            info=info or {},
        )


class RecordedRobot(LocalRobot):
    """An arm in this process that records its observations and actions since `begin`."""

    _log: Log | None = None

    def begin(self) -> None:
        """Start an episode at the present observation."""
        self._log = Log()
        self._log.see(self.observe())

    def episode(self, *, info: Mapping[str, float] | None = None) -> Episode:
        """Return the episode since `begin`; RobotError if no action was sent."""
        if self._log is None or not len(self._log):
            raise RobotError("record: no action was sent, so there is no episode")
        log, self._log = self._log, None
        return log.episode(info=info)

    def send(self, action: Array) -> Array:
        """Send `action`; record the action that was sent and the observation after it."""
        sent = super().send(action)
        if self._log is not None:
            self._log.send(sent)
            self._log.see(self.observe())
        return sent


def watch(watcher: Watcher, *, steps: int) -> Iterator[Episode]:
    """Yield an episode for each stretch in which a node's arm is armed, of `steps` at most.

    An episode begins with the first observation of an armed arm, and ends when the arm is stopped,
    or when an observation is missing because this watcher was too slow. Raises RobotError if the
    node is gone or silent; an episode that has begun is yielded before that.
    """
    log, number = Log(), -1
    while True:
        try:
            seen = watcher.observe()
        except RobotError:
            if len(log):
                yield log.episode()
            raise
        going = watcher.state == "armed"
        if number >= 0 and going and watcher.number == number + 1:
            log.send(watcher.sent)
            log.see(seen)
            number = watcher.number
            if len(log) < steps:
                continue
        if len(log):
            yield log.episode()
        log, number = Log(), -1
        if going:
            log.see(seen)
            number = watcher.number
