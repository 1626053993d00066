"""Threads that share a robot or a planner: a call waits for another, and a stop does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from toy_model import ToyModel, toy_spec

from latentplan.errors import RobotError
from latentplan.planning.cem import CEM
from latentplan.planning.mpc import MPC
from latentplan.real_robot.backends.sim import SimulatedDriver
from latentplan.real_robot.link.remote import RemoteRobot
from latentplan.real_robot.loop.local import LocalRobot
from latentplan.real_robot.loop.node import Node
from latentplan.real_robot.loop.safety import SafetyFilter
from latentplan.real_robot.loop.supervisor import Supervisor
from latentplan.robots.description import load
from latentplan.types import Goal

PANDA = load("panda")
TURN = np.array([0.4, 0, 0, 0, 0, 0, 0, 1.0])


def together(*calls: Callable[[], Any]) -> list[BaseException]:
    """Run each call in a thread of its own; return what they raised."""
    raised: list[BaseException] = []

    def run(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as e:
            raised.append(e)

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


class SlowModel(ToyModel):
    """A model that lets other threads run wherever it is asked."""

    def encode(self, observations: Any) -> Any:
        time.sleep(0.001)
        return super().encode(observations)

    def rollout(self, prepared: Any, actions: Any) -> Any:
        time.sleep(0.001)
        return super().rollout(prepared, actions)


def test_goals_and_the_rest_may_come_while_another_thread_acts() -> None:
    model = SlowModel(toy_spec(states=2), ToyModel.Config(coupling=0))
    planner = MPC(model, CEM(CEM.Config(candidates=16, elites=4, horizon=3)))
    state = {"state": np.array([-1.0, 1.0], np.float32)}
    planner.goal(state)
    acted = []

    def act() -> None:
        for _ in range(15):
            acted.append(planner.act(state))

    def each(call: Callable[[], Any]) -> Callable[[], None]:
        return lambda: [call() for _ in range(15)] and None

    others = [
        lambda: planner.goal(state),
        lambda: planner.reset(Goal(observation=state), seed=1),
        lambda: planner.evaluate(state, np.zeros((3, 2), np.float32)),
        lambda: planner.sent(np.zeros(2, np.float32)),
        lambda: planner.latency,
    ]
    assert not together(act, *map(each, others))
    assert len(acted) == 15 and np.isfinite(acted).all()


class Slow(SimulatedDriver):
    """A simulated arm whose period takes long enough for another thread to come in between."""

    waiting = threading.Event()

    def wait(self, until: float) -> None:
        self.waiting.set()
        time.sleep(0.02)
        super().wait(until)


def test_a_stop_ends_a_send_of_another_thread_at_its_next_tick() -> None:
    driver = Slow(PANDA)
    threads: set[int] = set()
    write = driver.write

    def note(setpoint: Any) -> None:
        threads.add(threading.get_ident())
        write(setpoint)

    driver.write = note  # type: ignore[method-assign]
    with LocalRobot(driver, Supervisor(SafetyFilter(PANDA)), period=0.2) as robot:
        sent: list[BaseException] = []

        def send() -> None:
            sent.extend(together(lambda: robot.send(TURN)))

        thread = threading.Thread(target=send)
        driver.waiting.clear()
        thread.start()
        assert driver.waiting.wait(10)
        begin = robot.supervisor.ticks
        robot.stop("a person")
        assert robot.health().state == "hold" and robot.supervisor.ticks - begin < 60
        thread.join(10)
        (error,) = sent
        assert isinstance(error, RobotError) and "hold; a person" in str(error)
        assert len(threads) == 1  # setpoints come from one loop
        robot.reset()
        robot.send(TURN)
        assert robot.health().state == "armed"


@pytest.fixture
def node() -> Any:
    patient = Supervisor.Config(joints_age=5, overruns=100, clock_jump=10)
    driver = SimulatedDriver(PANDA, SimulatedDriver.Config(real_time=True))
    supervisor = Supervisor(SafetyFilter(PANDA, SafetyFilter.Config(age=5)), patient)
    node = Node(driver, supervisor)
    thread = threading.Thread(target=node.run)
    thread.start()
    yield node
    node.leave()
    thread.join()


def test_threads_share_a_remote_robot(node: Node) -> None:
    with RemoteRobot(node.address, patience=20) as robot:

        def drive() -> None:
            while True:
                robot.observe()
                robot.send(TURN)

        def stop() -> None:
            for _ in range(5):
                assert robot.health().state == "armed"
            robot.preview(np.zeros((3, 3)))
            robot.stop("a person")
            assert robot.health().state == "hold"

        (error,) = together(drive, stop)
        assert isinstance(error, RobotError) and "hold; a person" in str(error)
        robot.reset()


def test_a_stop_does_not_wait_for_an_observation(node: Node) -> None:
    with RemoteRobot(node.address, patience=20) as robot:
        robot.observe()
        node._publish = lambda now: None  # type: ignore[method-assign]
        waiting = threading.Event()

        def wait() -> None:
            waiting.set()
            robot.observe()

        thread = threading.Thread(target=lambda: together(wait), daemon=True)
        thread.start()
        waiting.wait()
        time.sleep(0.2)
        robot.stop("a person")
        assert node.supervisor.state == "hold"
        del node._publish
        thread.join(20)


def test_each_of_many_goals_from_a_thread_reaches_the_planner(node: Node) -> None:
    with RemoteRobot(node.address, patience=20) as robot:
        for i in range(20):
            node.set_goal(f"goal {i}")
            robot.observe()
        robot.observe()
        assert robot.goal == "goal 19"
    with pytest.raises(RobotError, match="send less"):
        node.set_goal("x" * 10**6)


def test_an_emergency_stop_from_a_thread_of_the_node(node: Node) -> None:
    with RemoteRobot(node.address, patience=20) as robot:
        robot.observe()
        robot.send(TURN)
        node.emergency_stop("a service")
        end = time.monotonic() + 20
        while robot.health().state != "fault" and time.monotonic() < end:
            time.sleep(0.01)
        assert robot.health().reason == "a service"
