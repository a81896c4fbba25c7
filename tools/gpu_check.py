"""What one GPU shows of the real pi0: GPU tests, exactness, latency, training and inference rates.

    python3 tools/gpu_check.py --output gpu.json                 on the GPU; meant for 8 minutes on an H200
    python3 tools/gpu_check.py --device cpu --size tiny          a rehearsal of every step on any machine

Needs torch and what `pi0/` imports; downloads nothing and reads nothing outside the checkout. Weights are
random at the real architecture, because time and rounding depend on shapes. The mode of every figure is
named: float32, or bfloat16, in which weights of the two Gemmas and products are bfloat16, and the image
encoder is float32 with TF32 products on a GPU. What would begin after --minutes is left out by name. It was
never run on a GPU so far.
"""

import argparse
import copy
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from ours import observation, pi0_config  # noqa: E402
from roofline import GPUS, Cost, Gpu, cost  # noqa: E402
from sizes import SIZES, Inputs, Size, make_inputs  # noqa: E402

from pi0.graphs import GraphedSampler  # noqa: E402
from pi0.model import Pi0Model  # noqa: E402

CAMERAS, PROMPT_TOKENS, NUM_STEPS = 2, 20, 10  # LIBERO: two of three cameras; a prompt of 20 of 48 tokens
MODE = "bfloat16, image encoder TF32"
LATENCY_TARGET_MS, UTILISATION_TARGET = 10.0, 0.45


@dataclass
class Check:
    """One run of the program: what it may use, and the figures so far."""

    device: str
    size: Size
    repeats: int
    batches: list[int]
    gpu: Gpu | None
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        """Whether times are those of a GPU."""
        return self.device != "cpu"

    @property
    def cost(self) -> Cost:
        """Operations and bytes of a sample."""
        return cost(self.size, self.cameras, self.prompt_tokens)

    @property
    def cameras(self) -> int:
        """Cameras that hold an image."""
        return min(CAMERAS, self.size.cameras)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return min(PROMPT_TOKENS, self.size.max_tokens)

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked for."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the wall time of one run."""
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start


def main() -> int:
    """Run the sections, print their figures, write them; the exit code says whether the tests passed."""
    args = parse_arguments()
    deadline = time.monotonic() + 60 * args.minutes
    gpu = None
    if args.device == "cpu":
        torch.set_num_threads(1)
    else:
        name = torch.cuda.get_device_name()
        gpu = GPUS.get(name)
        print(f"GPU: {name}, torch {torch.__version__}")
    check = Check(args.device, SIZES[args.size], args.repeats, args.batches, gpu)
    check.figures |= {
        "device": torch.cuda.get_device_name() if check.is_gpu else "cpu (a rehearsal: no figure of a GPU)",
        "torch": torch.__version__,
        "size": args.size,
        "cameras": check.cameras,
        "prompt_tokens": check.prompt_tokens,
        "denoising_steps": NUM_STEPS,
    }
    failed = False
    for name, section in SECTIONS.items():
        if args.only and name not in args.only:
            continue
        if time.monotonic() > deadline:
            check.figures[name] = f"left out: {args.minutes} minutes had passed"
        else:
            check.figures[name] = section(check)
        failed |= name == "tests" and check.figures[name]["exit_code"] != 0
        print(f"{name}: {json.dumps(check.figures[name])}", flush=True)
        if args.output:
            args.output.write_text(json.dumps(check.figures, indent=1) + "\n")
        if check.is_gpu:
            torch.cuda.empty_cache()
    return int(failed)


def parse_arguments() -> argparse.Namespace:
    """Return the command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=SIZES, default="real")
    parser.add_argument("--repeats", type=int, default=200, help="of a latency")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[32, 16, 8], help="of training; first that fits"
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="no section begins later")
    parser.add_argument("--only", nargs="+", choices=SECTIONS)
    parser.add_argument("--output", type=Path, help="JSON with all figures")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; a rehearsal is --device cpu --size tiny")
    return args


# Models and inputs ------------------------------------------------------------------------------------------


def random_model(size: Size, dtype: str, device: str) -> Pi0Model:
    """Return a model with random weights, drawn on the device; the Gemmas' are bfloat16 values."""
    model = Pi0Model(pi0_config(size, dtype), seed=None, device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith(".bias"):
                parameter.fill_(1.0 if name.startswith("vision") and name.endswith("weight") else 0.0)
                continue
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
            if name.startswith(("vlm", "expert")):
                parameter.copy_(parameter.bfloat16())
    return model


def in_bfloat16(model: Pi0Model) -> Pi0Model:
    """Return a copy for inference in the bfloat16 mode."""
    other = copy.deepcopy(model)
    other.config = replace(model.config, dtype="bfloat16")
    return other.to_inference()


def example(check: Check, batch: int) -> Inputs:
    """Return random inputs on the device."""
    inputs = make_inputs(check.size, batch, check.cameras, check.prompt_tokens)
    return inputs.to(check.device)


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Compute float32 products of a GPU exactly (`highest`) or in TF32 (`high`) for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


# Sections ---------------------------------------------------------------------------------------------------


def gpu_tests(check: Check) -> dict[str, Any]:
    """Run the tests that need a GPU (elsewhere they skip themselves)."""
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(ROOT)]
    command += ["-p", "no:cacheprovider", "-W", "ignore", str(ROOT / "tests" / "test_gpu.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        print(result.stdout[-6000:], result.stderr[-2000:])
    return {"exit_code": result.returncode, "last_line": (result.stdout.strip().splitlines() or [""])[-1]}


def exactness(check: Check) -> dict[str, Any]:
    """Return errors of a 10-step sample relative to the eager float32 one on the same weights."""
    inputs = example(check, 1)
    model = random_model(check.size, "float32", check.device)
    seen, noise = observation(inputs), inputs.noise
    with products("highest"):
        exact = model.sample(seen, noise=noise, num_steps=NUM_STEPS)
        errors = {
            "float32 again": relative_error(model.sample(seen, noise=noise, num_steps=NUM_STEPS), exact)
        }
        if check.is_gpu:
            graphed = GraphedSampler(model)
            found = graphed(seen, noise=noise, num_steps=NUM_STEPS)
            errors["float32 graphed"] = relative_error(found, exact)
    low = in_bfloat16(model)
    for precision in ("highest", "high"):
        with products(precision):
            found = low.sample(seen, noise=noise, num_steps=NUM_STEPS)
        vision = "float32" if precision == "highest" else "TF32"
        errors[f"bfloat16, image encoder {vision}"] = relative_error(found, exact)
    return {"relative_errors": errors, "lerobot": lerobot_missing()}


def lerobot_missing() -> str:
    """Return why lerobot's own errors are not among the figures."""
    if importlib.util.find_spec("lerobot") is None:
        return "left out: lerobot is not installed here"
    return "left out: run benchmarks/policy.py --device cuda --size real --dtype bfloat16 for its figures"


def latency(check: Check) -> dict[str, Any]:
    """Return the milliseconds of one chunk for one robot, eager, graphed and compiled, in bfloat16."""
    model = in_bfloat16(random_model(check.size, "float32", check.device))
    inputs = example(check, 1)
    seen, noise = observation(inputs), inputs.noise
    figures: dict[str, Any] = {"mode": MODE, "target_p50_ms": LATENCY_TARGET_MS}
    with products("high"):
        figures["eager"] = percentiles(check, lambda: model.sample(seen, noise=noise, num_steps=NUM_STEPS))
        if check.is_gpu:
            graphed = GraphedSampler(model)
            figures["graphed"] = percentiles(check, lambda: graphed(seen, noise=noise, num_steps=NUM_STEPS))
            model.compile_blocks()
            start = time.monotonic()
            figures["compiled"] = percentiles(
                check, lambda: model.sample(seen, noise=noise, num_steps=NUM_STEPS)
            )
            both = GraphedSampler(model)
            figures["compiled and graphed"] = percentiles(
                check, lambda: both(seen, noise=noise, num_steps=NUM_STEPS)
            )
            figures["compiling_s"] = time.monotonic() - start
    if check.gpu:
        figures["roofline_ms"] = 1000 * check.cost.sample_seconds(check.gpu, 1, NUM_STEPS)
    return figures


def percentiles(check: Check, run: Callable[[], object], most: int = 1000) -> dict[str, float]:
    """Return p50 and p99 in milliseconds of --repeats runs, `most` at most, after warm-up."""
    for _ in range(min(5, check.repeats)):
        run()
    taken = sorted(1000 * check.seconds(run) for _ in range(min(most, check.repeats)))
    return {"p50_ms": statistics.median(taken), "p99_ms": taken[min(len(taken) - 1, int(0.99 * len(taken)))]}


def inference(check: Check) -> dict[str, Any]:
    """Return the chunks a second of 16 simulators' slots in one batch, as rollouts ask for them."""
    model = in_bfloat16(random_model(check.size, "float32", check.device))
    inputs = example(check, 16)
    seen = observation(inputs)
    sampler = GraphedSampler(model) if check.is_gpu else model.sample
    with products("high"):
        taken = percentiles(check, lambda: sampler(seen, noise=inputs.noise, num_steps=NUM_STEPS), most=20)
    figures = {"mode": f"{MODE}, graphed" if check.is_gpu else MODE, **taken}
    figures["chunks_per_s"] = 16 / (taken["p50_ms"] / 1000)
    if check.gpu:
        figures["roofline_chunks_per_s"] = 16 / check.cost.sample_seconds(check.gpu, 16, NUM_STEPS)
    return figures


def training(check: Check, freeze: str) -> dict[str, Any]:
    """Return the rate of training steps with AdamW, float32 weights and bfloat16 products."""
    for batch in check.batches:
        try:
            return training_at(check, freeze, batch)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return {"left out": f"no batch of {check.batches} fits the memory"}


def training_at(check: Check, freeze: str, batch: int) -> dict[str, Any]:
    """Return samples a second, model-FLOP utilisation and peak memory of one batch size."""
    if check.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    model = random_model(check.size, "bfloat16", check.device)
    model.freeze(freeze)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=check.is_gpu)
    inputs = example(check, batch)
    seen = observation(inputs)

    def step() -> None:
        loss = model.loss(seen, inputs.actions, noise=inputs.noise[None], time=inputs.time[None]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    with products("high"):
        for _ in range(3):
            step()
        taken = statistics.median(check.seconds(step) for _ in range(min(10, check.repeats)))
    count = check.cost
    # Frozen parts are passed forwards only; what is trained costs three forward passes.
    operations = count.train_flops() if freeze == "none" else count.vision + count.vlm + 3 * count.expert
    figures = {
        "mode": "float32 weights, bfloat16 products, image encoder TF32",
        "batch": batch,
        "samples_per_s": batch / taken,
        "tflops": batch * operations / taken / 1e12,
    }
    if check.is_gpu:
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        ceiling = check.figures["ceiling"]["bfloat16_tflops"]
        figures["utilisation_of_measured_ceiling"] = figures["tflops"] / ceiling
        figures["target"] = UTILISATION_TARGET if freeze == "none" else None
    if check.gpu:
        figures["roofline_samples_per_s"] = batch / count.train_seconds(check.gpu, batch)
    return figures


def ceiling(check: Check) -> dict[str, Any]:
    """Return the rate of a large bfloat16 product, which bounds every other rate here."""
    n = 8192 if check.is_gpu else 256
    a, b = (torch.randn(n, n, device=check.device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    taken = statistics.median(check.seconds(lambda: torch.mm(a, b)) for _ in range(10))
    return {
        "bfloat16_tflops": 2 * n**3 / taken / 1e12,
        "data_sheet_tflops": check.gpu and check.gpu.flops / 1e12,
    }


SECTIONS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "ceiling": ceiling,
    "tests": gpu_tests,
    "exactness": exactness,
    "latency": latency,
    "inference of 16 slots": inference,
    "full fine-tuning": lambda check: training(check, "none"),
    "expert-only training": lambda check: training(check, "expert_only"),
}

if __name__ == "__main__":
    sys.exit(main())
