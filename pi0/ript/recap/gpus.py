"""Kinds of GPU, by the figures of their maker."""

from dataclasses import dataclass

from pi0.registry import did_you_mean


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU; figures are the maker's, without sparsity."""

    memory: float
    """Bytes."""
    flops: float
    """Peak of bfloat16 on tensor cores, per second."""
    bandwidth: float
    """Of its memory, bytes per second."""
    link: float
    """To the other GPUs of its machine, bytes per second in one direction."""


GPUS = {
    "A100-40GB": Gpu(40e9, 312e12, 1.555e12, 300e9),
    "A100": Gpu(80e9, 312e12, 2.039e12, 300e9),
    "H100": Gpu(80e9, 989e12, 3.35e12, 450e9),
    "H200": Gpu(141e9, 989e12, 4.8e12, 450e9),
    "B200": Gpu(180e9, 2250e12, 8.0e12, 900e9),
    "L40S": Gpu(48e9, 362e12, 0.864e12, 32e9),
    "RTX4090": Gpu(24e9, 165e12, 1.008e12, 32e9),
}
"""By the name that `--gpu` takes; of several forms the SXM module. docs/cluster.md has the sources."""


def gpu_named(name: str) -> Gpu:
    """Return a kind of GPU; an unknown name is a ValueError that suggests known ones."""
    return GPUS[did_you_mean("--gpu", name, GPUS)]
