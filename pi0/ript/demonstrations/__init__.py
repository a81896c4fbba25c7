"""Demonstrations without a download: scripted experts carried out by operators of some quality."""

from pi0.ript.demonstrations.collect import TaskSummary, TooFewSuccessesError, collect_demonstrations
from pi0.ript.demonstrations.expert import Expert
from pi0.ript.demonstrations.experts import make_expert, tasks_with_expert
from pi0.ript.demonstrations.operators import OPERATORS, Demonstrator, Operator, get_operator
from pi0.ript.demonstrations.recorder import DemonstrationPlan, demonstrate

__all__ = [
    "OPERATORS",
    "DemonstrationPlan",
    "Demonstrator",
    "Expert",
    "Operator",
    "TaskSummary",
    "TooFewSuccessesError",
    "collect_demonstrations",
    "demonstrate",
    "get_operator",
    "make_expert",
    "tasks_with_expert",
]
