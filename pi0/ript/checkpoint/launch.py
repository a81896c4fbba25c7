"""Which launch of torchrun began a run: what torchrun starts again goes on, and does not begin anew.

A node that dies or joins makes torchrun start all processes again, with restart count 0 where the node is
new, and other ranks. The launch is known by its `--rdzv-id`; without one, by the agents, torchrun's own
processes, of which one at least is still there.
"""

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from pi0.ript.files import write_json
from pi0.ript.peers import Peers

FILE = "launch.json"
_NO_ID = "none"  # torchrun's, without --rdzv-id
_SAME_START_S = 60.0  # the clock of a machine may be set meanwhile


@dataclass(frozen=True)
class Launch:
    """A call of torchrun, on one machine or several."""

    run_id: str
    """Its --rdzv-id."""
    agents: list[tuple[str, int, float]]
    """Its own processes: machine, process id, when it was started."""

    def has_begun(self, run_dir: Path) -> bool:
        """Return whether this launch, or an earlier start of it, wrote the file in a run's directory."""
        file = run_dir / FILE
        if not file.exists():
            return False
        earlier = json.loads(file.read_text())
        if self.run_id != _NO_ID and self.run_id == earlier["run_id"]:
            return True
        return any(_is_same(agent, other) for agent in self.agents for other in earlier["agents"])

    def note(self, run_dir: Path) -> None:
        """Write down that the run in a directory is of this launch."""
        write_json(run_dir / FILE, {"run_id": self.run_id, "agents": self.agents})


def this_launch(peers: Peers) -> Launch | None:
    """Return the launch that started these processes; None without torchrun. All processes call this."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    agent = psutil.Process(os.getppid())
    own = (socket.gethostname(), agent.pid, agent.create_time())
    return Launch(run_id, sorted({agent for part in peers.gather([own]) for agent in part}))


def _is_same(agent: tuple[str, int, float], other: list) -> bool:
    return list(agent[:2]) == other[:2] and abs(agent[2] - other[2]) < _SAME_START_S
