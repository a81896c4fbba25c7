"""What `pi0-doctor` checks of the machine: packages, GPUs, disk, memory, cores."""

import os
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import psutil

from pi0.ript.commands.findings import Finding, Level, Request
from pi0.ript.cores import usable_cores

_CONSTRAINTS = Path(__file__).resolve().parents[3] / "constraints.txt"
_PACKAGES = ("torch", "lerobot", "transformers", "accelerate", "mujoco")
_PYTHON = (3, 12)
_GB = 1e9
_DISK = (5.0, 60.0)  # GB, for toys, and for a few files more than a checkpoint of the real pi0 (37)
_MEMORY = (2.0, 16.0)  # GB, for toys, and to load the real pi0
_DRIVER = Path("/proc/driver/nvidia/version")
_CGROUP = Path("/sys/fs/cgroup")


def versions(request: Request) -> list[Finding]:
    """Return how Python and the packages compare with those that the tests ran with."""
    running, needed = (".".join(map(str, numbers)) for numbers in (sys.version_info[:3], _PYTHON))
    if sys.version_info[:2] == _PYTHON:
        findings = [Finding("ok", f"python {running}")]
    else:
        findings = [Finding("FAIL", f"python {running}, expected {needed}", "make setup")]
    if not _CONSTRAINTS.exists():
        remedy = f"compare `pip list` with that file of the source, which is not at {_CONSTRAINTS}"
        return [*findings, Finding("warn", "packages: no constraints.txt to compare with", remedy)]
    tested = dict(line.split("==") for line in _CONSTRAINTS.read_text().split())
    env = "metaworld" if request.env == "metaworld" else "hf-libero"
    return findings + [_version(name, tested[name]) for name in (*_PACKAGES, env)]


def _version(name: str, tested: str) -> Finding:
    remedy = f"make setup, or pip install '{name}=={tested}'"
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("FAIL", f"{name} is not installed, expected {tested}", remedy)
    if installed.split("+")[0] == tested:  # what follows says how it was built
        return Finding("ok", f"{name} {installed}")
    is_close = installed.split(".")[:2] == tested.split(".")[:2]
    return Finding("warn" if is_close else "FAIL", f"{name} {installed}, tested with {tested}", remedy)


def gpu(request: Request) -> list[Finding]:
    """Return what each GPU is and can do."""
    del request
    import torch

    if not torch.cuda.is_available():
        if _DRIVER.exists() or shutil.which("nvidia-smi"):
            text = f"GPU: there is an NVIDIA driver, but torch {torch.__version__} cannot use it"
            remedy = (
                f"see `nvidia-smi`, CUDA_VISIBLE_DEVICES, and that its CUDA is {torch.version.cuda} or newer"
            )
            return [Finding("FAIL", text, remedy)]
        return [
            Finding("warn", "GPU: none", "toys need none; the real pi0 takes a CUDA GPU, see device=cuda")
        ]
    return [_gpu(index) for index in range(torch.cuda.device_count())]


def _gpu(index: int) -> Finding:
    import torch

    properties = torch.cuda.get_device_properties(index)
    free, total = (size / _GB for size in torch.cuda.mem_get_info(index))
    version = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text()) if _DRIVER.exists() else None
    text = f"GPU {index}: {properties.name}, {free:.0f} of {total:.0f} GB free, driver "
    text += f"{version[0] if version else 'unknown'}, CUDA {torch.version.cuda}"
    ones = torch.ones(64, 64, device=f"cuda:{index}")
    if (ones @ ones).sum().item() != 64**3:
        remedy = "replace it, or leave it out with CUDA_VISIBLE_DEVICES"
        return Finding("FAIL", f"{text}: a product of matrices is wrong", remedy)
    if (properties.major, properties.minor) < (8, 0):
        return Finding("warn", f"{text}: no bfloat16", "use policy.dtype=float32")
    return Finding("ok", f"{text}, bfloat16")


def disk(request: Request) -> list[Finding]:
    """Return the room where runs are written."""
    place = Path(request.output_dir).expanduser().absolute()
    existing = next(path for path in (place, *place.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return [
            Finding("FAIL", f"disk: {existing} is not a directory to write to", "choose another output_dir")
        ]
    free = shutil.disk_usage(existing).free / _GB
    remedy = "remove old checkpoints, or choose another output_dir; a checkpoint of the real pi0 takes 37 GB"
    return [_enough(free, _DISK, f"disk: {free:.0f} GB free for {request.output_dir}", remedy)]


def memory(request: Request) -> list[Finding]:
    """Return the memory that is left, for this container if it has a limit."""
    del request
    free = psutil.virtual_memory().available / _GB
    limit = _CGROUP / "memory.max"
    if limit.exists() and limit.read_text().strip() != "max":
        used = int((_CGROUP / "memory.current").read_text())
        free = min(free, (int(limit.read_text()) - used) / _GB)
    remedy = "end other programs, or lower task.num_parallel_envs; the real pi0 loads in 16 GB"
    return [_enough(free, _MEMORY, f"memory: {free:.1f} GB available", remedy)]


def cores(request: Request) -> list[Finding]:
    """Return the CPU cores that this process may use."""
    del request
    count = usable_cores()
    if count < 2:
        remedy = "use task.num_workers=1; policy and simulators take turns"
        return [Finding("warn", f"CPU cores: {count:g}", remedy)]
    return [Finding("ok", f"CPU cores: {count:g}")]


def _enough(free_gb: float, limits_gb: tuple[float, float], text: str, remedy: str) -> Finding:
    """Return a finding: less than the first limit is too little, less than the second can be."""
    least, good = limits_gb
    level: Level = "FAIL" if free_gb < least else "warn" if free_gb < good else "ok"
    return Finding(level, text, "" if level == "ok" else remedy)
