"""What a resumed run continues from: its newest valid snapshot, with the same settings, weights and data.

A setting that cannot change a result says so in the schema: `field(..., metadata={"result": "same"})`. With
"rounding" it changes a result by no more than the rounding of other kernels and batches, with "longer" it may
be raised, and the run goes on. All others must be those that the run began with.
"""

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pi0.errors import UnusableError
from pi0.ript.checkpoint.files import SnapshotError, position, published, verify
from pi0.ript.files import flatten, hash_values, library_hash, plain
from pi0.ript.peers import Peers
from pi0.weights import held_parameters

AUTO = "auto"
RENAMED = {"policy.norm_stats_path": "policy.statistics_path"}
"""Settings by their name in saved runs of version 0.1.0: what they are called now."""
_PACKAGES = ("torch", "lerobot", "mujoco", "metaworld", "hf-libero", "robosuite")


_ADDED = {
    **{"algo.beta1": 0.9, "algo.beta2": 0.95, "algo.weight_decay": 1e-4},
    **{"algo.noise_level": 0.7, "algo.stochastic_steps": 4, "algo.stochastic_among": 4},
    **{"algo.clip_range": 0.02, "algo.kl_weight": 0.0},
    **{"dataset.max_windows_per_episode": None, "policy.embodiment": None, "policy.frozen_dtype": None},
}
"""Settings that version 0.1.0 did not have, with what it did: at these its episodes keep their place."""


class ChangedSettingsError(UnusableError):
    """A run cannot be continued with settings that change its result."""


@dataclass(frozen=True)
class Advice:
    """What the messages about a snapshot tell the user, in the words of the command that was started."""

    resume: str = "continue with --resume"
    """How the run goes on."""
    anew: str = "start a new run with another exp_name and without --resume"
    """How another one begins."""
    weights: str = "the files at policy_path or the statistics"
    """Where weights come from that are not trained."""


RUNG_13 = Advice()


def find_checkpoint(run_dir: Path, resume: str | None, advice: Advice = RUNG_13) -> Path | None:
    """Return the checkpoint to continue from, None to start from the beginning.

    Args:
        run_dir: The run.
        resume: "auto" for the newest valid one, a corrupt one is named and passed over; a path for exactly
            that one; None for none.
        advice: What to do if none is valid.

    Raises:
        SnapshotError: The one at the path is not valid, or none of the run is.
    """
    if resume is None:
        return None
    if resume != AUTO:
        if position(Path(resume).resolve()) is None:
            raise SnapshotError(
                f"resume: expected 'auto' or the path of a checkpoint-N directory, found {resume!r}; "
                f"the run has {[path.name for path in published(run_dir)]}"
            )
        verify(Path(resume))
        return Path(resume)
    candidates = published(run_dir)[::-1]
    for path in candidates:
        try:
            verify(path)
        except SnapshotError as error:
            print(f"not used: {error}")  # noqa: T201
            continue
        print(f"resume: continuing from {path}")  # noqa: T201
        return path
    if candidates:
        raise SnapshotError(
            f"resume: none of the {len(candidates)} checkpoints in {run_dir} is valid, see above; "
            f"{advice.anew}"
        )
    print(f"resume: no checkpoint in {run_dir} yet, starting from the beginning")  # noqa: T201
    return None


# Settings ---------------------------------------------------------------------------------------------------


def settings_hash(config: Any) -> str:
    """Return a hash of the settings that have an influence on episodes; `config` is a dataclass."""
    marks, values = dict(_marks(config)), flatten(plain(config), into_lists=True)
    first_names = {now: then for then, now in RENAMED.items()}  # or the hash would change with a name
    added = {key for key, default in _ADDED.items() if values.get(key, default) == default}
    counted = {key: value for key, value in values.items() if _mark(marks, key) is None and key not in added}
    return hash_values({first_names.get(key, key): value for key, value in counted.items()})


def present_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a saved run, by dotted name, under the names that they have now."""
    return {RENAMED.get(key, key): value for key, value in settings.items()}


def find_same_run(
    run_dir: Path,
    config: Any,
    resume: str | None = AUTO,
    advice: Advice = RUNG_13,
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> Path | None:
    """Return what `find_checkpoint` does; raise ChangedSettingsError if it is of other settings.

    `read` returns saved settings under their present names.
    """
    checkpoint = find_checkpoint(run_dir, resume, advice)
    if checkpoint is not None:
        saved = read(verify(checkpoint, hashes=False)["config"])
        require_same_settings(saved, config, checkpoint, advice)
    return checkpoint


def require_same_settings(
    saved: Mapping[str, Any], config: Any, where: Path, advice: Advice = RUNG_13
) -> None:
    """Raise ChangedSettingsError if a setting differs that changes the result by more than rounding.

    What differs by no more than rounding is printed. A setting that the saved run did not know has its
    default there.

    Args:
        saved: Settings of the run, plain values.
        config: Those that are to continue it, a dataclass whose fields have defaults.
        where: The run's snapshot, for the message.
        advice: What else to do than to set them back.
    """
    now = flatten(plain(config), into_lists=True)
    defaults = flatten(plain(type(config)()), into_lists=True)
    before = {key: value for key, value in defaults.items() if key in now}
    before |= present_names(flatten(saved, into_lists=True))
    marks, changed = dict(_marks(config)), ""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        mark = _mark(marks, key)
        if old == new or mark == "same" or (mark == "longer" and now[key] > before[key]):
            continue
        if mark == "rounding":
            print(f"resume: {key}: {old!r} -> {new!r}; the results are equal up to rounding")  # noqa: T201
        else:
            changed += f"\n  {key}: {old!r} -> {new!r}"
    if changed:
        raise ChangedSettingsError(
            f"resume: these settings differ from those of {where}, saved -> now, and would change the result:"
            f"{changed}\nSet them back, or {advice.anew}"
        )


def _marks(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted names of settings and sections that have a mark, and the mark."""
    for field in fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        if "result" in field.metadata:
            yield name, field.metadata["result"]
        elif is_dataclass(value):
            yield from _marks(value, f"{name}.")


def _mark(marks: Mapping[str, str], key: str) -> str | None:
    """Return the mark of a setting: its own, or that of a section it is in."""
    return next((mark for name, mark in marks.items() if f"{key}.".startswith(f"{name}.")), None)


# Weights, data and surroundings -----------------------------------------------------------------------------


def run_facts(
    config: Any,
    model: nn.Module,
    peers: Peers,
    reads: nn.Module | None = None,
    data: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the manifest of a snapshot says about its run, for `require_same_run`.

    Args:
        config: All settings.
        model: What is trained, or a part of it.
        peers: The processes that train together.
        reads: Another model that the trained one reads and that stays as it is.
        data: Hashes of what is learned from, by name.
    """
    return {
        "config": plain(config),
        "num_processes": peers.size,
        "untrained": _fingerprint(model, reads, peers),
        "versions": {
            "python": platform.python_version(),
            "code": library_hash(),
            **{name: version(name) for name in _PACKAGES},
        },
        **({"data": dict(data)} if data else {}),
    }


def require_same_run(
    path: Path,
    manifest: Mapping[str, Any],
    facts: Mapping[str, Any],
    peers: Peers,
    advice: Advice = RUNG_13,
) -> None:
    """Raise SnapshotError if a run's data or frozen weights are others than a snapshot's manifest says.

    Other versions of libraries and another number of processes are printed. What the manifest, of an earlier
    version, does not say is not compared.

    Args:
        path: The snapshot, for the messages.
        manifest: Its manifest.
        facts: Those of the run that is to go on.
        peers: The processes that train together; one of them prints.
        advice: What to do.
    """
    data = facts.get("data", {})
    differ = [name for name, old in manifest.get("data", {}).items() if data.get(name) != old]
    if differ:
        raise SnapshotError(
            f"{path}: {', '.join(differ)}: the data are others than when the run began; put them back, or "
            f"{advice.anew}"
        )
    if manifest.get("untrained", facts["untrained"]) != facts["untrained"]:
        raise SnapshotError(
            f"{path}: the weights that are not trained differ from those of the run; {advice.weights} are "
            f"others than when it began; put them back, or {advice.anew}"
        )
    old, now = manifest.get("versions", {}), facts["versions"]
    changes = [f"{name} {old[name]} -> {now.get(name)}" for name in old if old[name] != now.get(name)]
    processes = manifest.get("num_processes", facts["num_processes"])
    if processes != facts["num_processes"]:
        changes.append(f"processes {processes} -> {facts['num_processes']}")
    if changes and peers.rank == 0:
        print(f"resume: {', '.join(changes)}; the results are equal up to rounding at best")  # noqa: T201


def _fingerprint(model: nn.Module, reads: nn.Module | None, peers: Peers) -> str:
    """Return a hash of what is not trained; sums of bits, because hashing gigabytes would take seconds."""
    frozen = {name: p.detach() for name, p in held_parameters(model).items() if not p.requires_grad}
    if reads is not None:
        frozen |= {f"reads.{name}": parameter.detach() for name, parameter in reads.named_parameters()}
    sums = {name: _sum_of_bits(value) for name, value in frozen.items()}
    in_parts = {name: sums[name] for name, value in frozen.items() if isinstance(value, DTensor)}
    if in_parts:
        everybody = [parts for (parts,) in peers.gather([in_parts])]
        sums |= {name: sum(parts[name] for parts in everybody) for name in in_parts}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()


def _sum_of_bits(value: Tensor) -> int:
    """Return the sum of what is here of a tensor."""
    value = value.to_local() if isinstance(value, DTensor) else value
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for part in value.reshape(-1).split(2**24):
        # The values count, not the dtype that they happen to be held in.
        exact = part.float() if part.dtype in (torch.bfloat16, torch.float16) else part.contiguous()
        total += int(exact.view(kinds[exact.element_size()]).sum(dtype=torch.int64))
    return total
