"""The rope under the import path of earlier versions."""

from latentplan.sim.deformable.rope import Rope

__all__ = ["Rope"]
