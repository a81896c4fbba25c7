"""Arithmetic and memory traffic of pi0, and the time that a GPU needs at least for them.

Counts what the mathematics needs, not what an implementation does: real cameras and prompt tokens
only, keys and values alone in the last language-model layer. One multiply-add is two operations.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Dense bf16 rate in operations per second, and memory bandwidth in bytes per second."""

    flops: float
    bandwidth: float


# by torch.cuda.get_device_name(); data sheets, without sparsity
GPUS = {
    "NVIDIA A100-SXM4-40GB": Gpu(312e12, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Gpu(312e12, 2.039e12),
    "NVIDIA A100 80GB PCIe": Gpu(312e12, 1.935e12),
    "NVIDIA H100 PCIe": Gpu(756e12, 2.0e12),
    "NVIDIA H100 80GB HBM3": Gpu(989e12, 3.35e12),
    "NVIDIA H200": Gpu(989e12, 4.8e12),
    "NVIDIA L40S": Gpu(362e12, 0.864e12),
    "NVIDIA GeForce RTX 4090": Gpu(165e12, 1.008e12),
}


def gpu(name: str, flops: float | None = None, bandwidth: float | None = None) -> Gpu:
    """Return the GPU's figures; those given take precedence over the table's.

    Raises:
        ValueError: The name is not in `GPUS` and a figure is not given.

    """
    if flops and bandwidth:
        return Gpu(flops, bandwidth)
    if name not in GPUS:
        raise ValueError(
            f"GPU: expected one of {sorted(GPUS)}, found {name!r}; "
            "give --peak-tflops and --bandwidth-tbs from its data sheet"
        )
    return Gpu(flops or GPUS[name].flops, bandwidth or GPUS[name].bandwidth)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations per sample, and bytes of weights and of cached keys and values read in bf16."""

    vision: float
    vlm: float
    expert: float  # one pass over state and actions
    prefix_bytes: float  # vision and language-model weights
    expert_bytes: float  # expert weights
    kv_bytes: float  # per sample and denoising step

    @property
    def forward(self) -> float:
        """Return the operations of one training forward pass of one sample."""
        return self.vision + self.vlm + self.expert

    def train_flops(self) -> float:
        """Return the operations of one sample forward and backward: three forward passes."""
        return 3 * self.forward

    def sample_flops(self, num_steps: int = 10) -> float:
        """Return the operations of sampling one chunk."""
        return self.vision + self.vlm + num_steps * self.expert

    def train_seconds(self, gpu: Gpu, batch: int) -> float:
        """Return the least time of a train step: weights read twice, gradients written."""
        traffic = 3 * (self.prefix_bytes + self.expert_bytes)
        return max(batch * self.train_flops() / gpu.flops, traffic / gpu.bandwidth)

    def sample_seconds(self, gpu: Gpu, batch: int = 1, num_steps: int = 10) -> float:
        """Return the least time of sampling: the prefix once, then the expert in every step."""
        prefix = max(batch * (self.vision + self.vlm) / gpu.flops, self.prefix_bytes / gpu.bandwidth)
        step = max(
            batch * self.expert / gpu.flops,
            (self.expert_bytes + batch * self.kv_bytes) / gpu.bandwidth,
        )
        return prefix + num_steps * step


def cost(config: Any, cameras: int, prompt_tokens: int) -> Cost:
    """Return the cost of pi0 (config: `Size` or `Pi0Config`) for real cameras and prompt tokens."""
    vision, vlm, expert = config.vision, config.vlm, config.expert
    prefix = cameras * vision.num_patches + prompt_tokens
    suffix = 1 + config.chunk_size
    vision_layer = 4 * vision.width**2 + 2 * vision.width * vision.mlp_dim
    vision_ends = vision.width * (3 * vision.patch_size**2 + vlm.width)
    vision_weights = vision.depth * vision_layer + vision_ends
    image_flops = 2 * vision.num_patches * vision_weights
    image_flops += vision.depth * 4 * vision.num_patches**2 * vision.width
    last_layer = 2 * vlm.width * vlm.num_kv_heads * vlm.head_dim
    vlm_weights = (vlm.depth - 1) * _layer_weights(vlm) + last_layer
    expert_weights = expert.depth * _layer_weights(expert)
    heads = 2 * config.max_action_dim * expert.width + 3 * expert.width**2
    return Cost(
        vision=cameras * image_flops,
        vlm=2 * prefix * vlm_weights + (vlm.depth - 1) * _attention(vlm, prefix, prefix),
        expert=2 * suffix * (expert_weights + heads)
        + expert.depth * _attention(expert, suffix, prefix + suffix),
        prefix_bytes=2 * (vision_weights + vlm_weights),
        expert_bytes=2 * (expert_weights + heads),
        kv_bytes=2 * 2 * vlm.depth * prefix * vlm.num_kv_heads * vlm.head_dim,
    )


def _layer_weights(gemma: Any) -> int:
    heads = (2 * gemma.num_heads + 2 * gemma.num_kv_heads) * gemma.head_dim
    return gemma.width * (heads + 3 * gemma.mlp_dim)


def _attention(gemma: Any, queries: int, keys: int) -> int:
    return 4 * queries * keys * gemma.num_heads * gemma.head_dim
