"""Two pi0-eval with one --output: the second moved the first aside, which then wrote over its results.

Exit code 0: right; 1: wrong, with what is wrong. Run from the root of a checkout.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

W = Path(tempfile.mkdtemp(prefix="repro-"))
WRONG: list[str] = []

code = """
import sys, time, types
from pathlib import Path
import pi0.ript.policy_evaluation as e
# Without a simulator; the evaluation ends when the file 'go' + its name is there.
me, root = sys.argv[1], Path(sys.argv[2])
class Env:
    tasks = {}
    def make(self): return self
    def __enter__(self): return self
    def __exit__(self, *a): pass
from pi0.ript.evaluate import Evaluation, EpisodeResult
e.require_usable = lambda config: [Env()]
e._load = lambda *a: types.SimpleNamespace(training=False)
def evaluate(*a):
    (root / f"in-{me}").touch()
    while not (root / f"go-{me}").exists(): time.sleep(0.05)
    return Evaluation({"first": 1, "second": 2}[me], (EpisodeResult("t", me, me == "first", 3),))
e._evaluate = evaluate
output, seed = root / "eval", {"first": 1, "second": 2}[me]
e.evaluate_policy(e.EvaluationConfig(policy_path=me, seed=seed, device="cpu", output_dir=str(output)))
"""


def check(is_right, what):
    print(("right  " if is_right else "WRONG  ") + what)
    if not is_right:
        WRONG.append(what)


def start(me):
    words = [sys.executable, "-c", code, me, str(W)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(name, process):
    end = time.monotonic() + 90
    while not (W / name).exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)


first = start("first")
until("in-first", first)
second = start("second")
until("in-second", second)
(W / "go-second").touch()
said_second = second.communicate()[0]
(W / "go-first").touch()
said_first = first.communicate()[0]
refused = second.returncode not in (0, None)
found = {}
for place in sorted(W.glob("eval*")):
    files = [place / name for name in ("settings.json", "evaluation.json")]
    held = {file.name: json.loads(file.read_text()).get("seed") for file in files if file.exists()}
    found[place.name] = held
    check(
        len(set(held.values())) <= 1,
        f"{place.name}: seeds of settings.json and evaluation.json {held} (expected: of one run)",
    )
kept = {held.get("evaluation.json") for held in found.values()}
check(
    refused or {1, 2} <= kept,
    f"results kept of seeds {sorted(k for k in kept if k)}, exit codes {first.returncode}, "
    f"{second.returncode} (expected: both, or the second refused)",
)
check(first.returncode == 0, f"the first ends with 0:\n{said_first}")
check("is being written by process" in said_second, f"the second says why:\n{said_second}")
sys.exit(bool(WRONG))
