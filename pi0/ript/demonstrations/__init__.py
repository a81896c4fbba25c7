"""Demonstrations without a download: scripted experts carried out by operators of some quality."""

from pi0.ript.demonstrations.collect import collect_demonstrations
from pi0.ript.demonstrations.experts import tasks_with_expert
from pi0.ript.demonstrations.recorder import DemonstrationPlan

__all__ = ["DemonstrationPlan", "collect_demonstrations", "tasks_with_expert"]
