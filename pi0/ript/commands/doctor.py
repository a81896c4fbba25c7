"""`pi0-doctor`: is this machine fit to train and evaluate? Each line says ok, or what to do."""

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pi0.ript.commands import machine_checks, trial_checks
from pi0.ript.commands.findings import Finding, Request
from pi0.ript.envs.libero_files import SUITES

_EXAMPLES = """
examples:
  pi0-doctor
  pi0-doctor --env libero_object --checkpoint checkpoints/pi0_libero
  MUJOCO_GL=osmesa pi0-doctor --env libero
  pi0-doctor --dataset data/demonstrations data/rollouts

Lines are "ok", "warn" (works, but not for everything) and "FAIL", each of the latter with its remedy.
exit codes: 0 nothing failed; 1 something failed, a data set cannot be trained on; 2 unusable arguments
"""


@dataclass(frozen=True)
class Check:
    """Something to be checked, in a process of its own, so that a crash or a hang is a finding too."""

    function: Callable[[Request], list[Finding]]
    timeout: float
    """Seconds, on a slow disk and a loaded machine."""
    remedy: str
    """When it crashes, raises or hangs."""


CHECKS = {
    "versions": Check(machine_checks.versions, 60.0, "make setup"),
    "rendering": Check(trial_checks.rendering, 180.0, trial_checks.NO_RENDERING),
    "assets": Check(trial_checks.assets, 120.0, "make setup; then see README, LIBERO_ASSETS"),
    "GPU": Check(
        machine_checks.gpu, 120.0, "see `nvidia-smi`; a process that hangs on the GPU needs to be ended"
    ),
    "disk": Check(
        machine_checks.disk, 30.0, "see that the disk of output_dir answers, or choose another one"
    ),
    "memory": Check(machine_checks.memory, 30.0, "make setup"),
    "CPU cores": Check(machine_checks.cores, 30.0, "make setup"),
    "process group": Check(trial_checks.process_group, 120.0, trial_checks.NO_GROUP),
    "checkpoint": Check(trial_checks.checkpoint, 300.0, "name another, or save or download it again"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    if options.dataset is not None:
        return _show_datasets(options.dataset, options.json)
    request = Request(options.env, options.checkpoint, options.output_dir)
    if options.only is not None:
        return _answer(options.only, request)
    failed, told = 0, []
    for name in CHECKS:
        for finding in findings(name, request):
            told.append(dataclasses.asdict(finding))
            if not options.json:
                print(finding, flush=True)  # noqa: T201
            failed += finding.level == "FAIL"
    summary = f"{failed} checks failed" if failed else "nothing failed"
    print(json.dumps({"findings": told}, indent=2) if options.json else summary)  # noqa: T201
    return 1 if failed else 0


def _show_datasets(names: Sequence[str], as_json: bool) -> int:
    from pi0.ript.commands.dataset_checks import (  # lerobot takes seconds to import
        dataset_reports,
        print_report,
    )

    reports = dataset_reports(names)
    failed = [report.name for report in reports if not report.can_be_trained_on]
    if as_json:
        print(json.dumps({"datasets": [report.to_dict() for report in reports]}, indent=2))  # noqa: T201
        return 1 if failed else 0
    for report in reports:
        print_report(report)
    print(f"cannot be trained on: {', '.join(failed)}" if failed else "nothing failed")  # noqa: T201
    return 1 if failed else 0


def findings(name: str, request: Request) -> list[Finding]:
    """Return what a check finds, run in a process of its own."""
    own = [sys.executable, __file__, "--only", name, "--env", request.env, "--output-dir", request.output_dir]
    if request.checkpoint is not None:
        own += ["--checkpoint", request.checkpoint]
    return ask(name, own)


def ask(name: str, command: Sequence[str]) -> list[Finding]:
    """Return the findings that a process prints in its last line; its end or its silence is one as well."""
    check = CHECKS[name]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=check.timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        process.communicate()
        return [Finding("FAIL", f"{name}: no answer in {check.timeout:g} s", check.remedy)]
    if process.returncode == 0:
        return [Finding(**values) for values in json.loads(output.splitlines()[-1])]
    return [Finding("FAIL", f"{name}: {_reason(process.returncode, errors)}", check.remedy)]


def _reason(code: int, errors: str) -> str:
    """Return in one line why a process failed: its exception, or else its end."""
    raised = re.findall(r"^[A-Za-z_][\w.]*: .*", errors, re.MULTILINE)
    if code > 0 and raised:
        return raised[-1]
    last = (errors.strip().splitlines() or ["no message"])[-1]
    ended = f"exit code {code}" if code > 0 else f"died of {signal.Signals(-code).name}"
    return f"{ended} ({last})"


def _parser() -> argparse.ArgumentParser:
    default = Request()
    parser = argparse.ArgumentParser(
        prog="pi0-doctor",
        description="Check whether this machine is fit to train and evaluate.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    environments = ["metaworld", "libero", *SUITES]
    add("--env", default=default.env, choices=environments, metavar="ENV", help=", ".join(environments))
    add("--checkpoint", metavar="DIR", help="a policy that is to be used")
    add("--dataset", nargs="+", metavar="ROOT", help="check data sets instead of the machine: directories of "
        "LeRobotDatasets v3, or names on the hub")  # fmt: skip
    add("--json", action="store_true", help="print what is found as JSON")
    add("--output-dir", default=default.output_dir, metavar="DIR", help="where runs are written")
    add("--only", choices=CHECKS, metavar="CHECK", help=argparse.SUPPRESS)  # how a check runs by itself
    return parser


def _answer(name: str, request: Request) -> int:
    """Print the findings of one check as a line of JSON."""
    print(json.dumps([dataclasses.asdict(finding) for finding in CHECKS[name].function(request)]))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
