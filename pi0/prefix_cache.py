"""Prefixes that are computed once: keys and values of images and prompts, kept while their weights stay.

With vision and language frozen, what the action expert reads of a sample is the same in every epoch. A sample
is recognised by its contents (a hash of its images and of all that its prompt is made of), so nobody has to
number samples, and an image that was changed is another sample.

Axis legend: b batch, t tokens of the longest sample, e head dim, l layers, n valid tokens of a sample.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pi0.config import Pi0Config
from pi0.features import STATE
from pi0.gemma import KeyValues
from pi0.model import Pi0Model
from pi0.observation import Indicators, each_indicator
from pi0.prefix import Prefix
from pi0.preprocess import require_cameras, samples_of

if TYPE_CHECKING:  # a policy has a cache
    from pi0.policy import PI0Policy

PLACES = ("device", "memory", "disk")
"""Where prefixes can be kept: beside the model, in the host's memory, or in a temporary file."""

type Sample = Float[Tensor, "2 l _ e"]
"""Keys and values of one sample's valid tokens."""


class PrefixCache:
    """Keeps prefixes until a number of bytes is reached; those that come later are computed each time."""

    def __init__(self, budget: int, place: str = "memory", directory: str | Path | None = None) -> None:
        """Keep at most `budget` bytes.

        Args:
            budget: Bytes of keys and values.
            place: One of `PLACES`.
            directory: Of the temporary file, for "disk"; None: the system's. The file has no name, so it
                ends with the process.

        Raises:
            ValueError: There is no such place.
        """
        if place not in PLACES:
            raise ValueError(f"prefix cache: expected one of {', '.join(PLACES)}, found {place!r}")
        self.budget, self.place = budget, place
        self._used_for: object = None
        self._file = tempfile.TemporaryFile(dir=directory) if place == "disk" else None  # noqa: SIM115
        self.clear()

    def clear(self) -> None:
        """Forget all of them: other samples come, or other weights."""
        self._samples: dict[bytes, Sample] = {}
        self.size = 0
        """Bytes that are kept."""
        self.found = self.computed = 0
        if self._file is not None:
            self._file.truncate(0)

    def use_for(self, samples: object) -> None:
        """Forget all of them unless they are of these samples, which anything that compares can stand for."""
        if samples != self._used_for:
            self._used_for = samples
            self.clear()

    @property
    def num_samples(self) -> int:
        """The samples that are kept."""
        return len(self._samples)

    def __deepcopy__(self, memo: Mapping[int, Any]) -> None:
        """Return None: a copy of a policy can get other weights, so it begins without a cache."""
        return

    @torch.no_grad()
    def of(self, policy: "PI0Policy", batch: Mapping[str, Any], indicator: Indicators = None) -> Prefix:
        """Return the prefix of a raw batch; what is not kept is computed.

        Raises:
            ValueError: As `PI0Policy.preprocess`.
        """
        raw = policy.embodiments.vector(batch, STATE, policy.device)
        given = each_indicator(indicator, len(raw), policy.config.indicator)
        if not len(raw):  # of several processes one can have no sample in a step
            return policy.model.prefix(policy.preprocess(batch, given))
        says = policy.embodiments.features_of(batch)
        require_cameras(batch, says)
        state = policy.embodiments.encode_state(batch, raw, policy.config.max_state_dim)
        made_of = [(prompt, says.resize) for prompt in policy.prompts(batch, given, state)]
        keys = sample_keys(batch, says.present_cameras, made_of)

        def compute(numbers: list[int]) -> Prefix:
            part = samples_of(batch, numbers, len(raw))
            return policy.model.prefix(policy.preprocess(part, None if given is None else given[numbers]))

        return self.prefix(keys, compute, policy.device)

    def prefix(
        self, keys: Sequence[bytes], compute: Callable[[list[int]], Prefix], device: torch.device
    ) -> Prefix:
        """Return the prefix of a batch.

        Args:
            keys: What each sample is recognised by.
            compute: Returns the prefix of some samples of the batch, by their numbers in it.
            device: Where the prefix is to be.
        """
        samples = {key: self._samples[key] for key in keys if key in self._samples}
        first = {key: number for number, key in reversed(list(enumerate(keys))) if key not in samples}
        self.found, self.computed = self.found + len(keys) - len(first), self.computed + len(first)
        if first:
            new = _split(compute(sorted(first.values())))
            for key, sample in zip(sorted(first, key=first.__getitem__), new, strict=True):
                samples[key] = sample
                self._keep(key, sample)
        return _joined([samples[key] for key in keys], device)

    def _keep(self, key: bytes, sample: Sample) -> None:
        if self.size + sample.nbytes > self.budget:
            return
        if self._file is not None:
            self._samples[key] = self._on_disk(sample)
        else:
            # A copy: a sample is a view of its batch, which would stay as a whole.
            self._samples[key] = sample.clone() if self.place == "device" else sample.to("cpu", copy=True)
        self.size += sample.nbytes

    def _on_disk(self, sample: Sample) -> Sample:
        """Return the sample as memory that is mapped from the file's end, where it is written."""
        assert self._file is not None
        self._file.seek(self.size)
        self._file.write(sample.cpu().contiguous().view(torch.uint8).numpy().data)
        self._file.flush()
        place = {"offset": self.size, "shape": (sample.nbytes,), "mode": "r+"}
        mapped = np.memmap(self._file, np.uint8, **place)
        return torch.from_numpy(mapped).view(sample.dtype).view(sample.shape)


def prefix_bytes(config: Pi0Config, num_cameras: int) -> int:
    """Return the bytes of a sample's keys and values of images and prompt, if the prompt is the longest."""
    tokens = num_cameras * config.vision.num_patches + config.tokenizer_max_length
    width = 2 * config.vlm.depth * config.vlm.head_dim
    return tokens * width * getattr(torch, config.dtype).itemsize


def trained_in_prefix(model: Pi0Model) -> str | None:
    """Return the name of a parameter that a prefix is made with and that is trained; None: there is none."""
    trained = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return next((name for name in trained if name.startswith(("vision.", "vlm."))), None)


def sample_keys(batch: Mapping[str, Any], images: Sequence[str], prompts: Sequence[Any]) -> list[bytes]:
    """Return what each sample of a batch is recognised by.

    Args:
        batch: Raw, with lerobot's keys.
        images: The keys of its images.
        prompts: All that the prompt of each sample is made of, besides the batch's images.
    """
    hashes = [hashlib.blake2b(repr(prompt).encode(), digest_size=16) for prompt in prompts]
    for name in images:
        for key in (name, f"{name}_is_pad"):
            if (values := batch.get(key)) is None:
                continue
            rows = torch.as_tensor(values).cpu().contiguous()
            if len(rows) != len(hashes):
                raise ValueError(f"{key}: expected the batch size {len(hashes)}, found {len(rows)}")
            said = f"{key} {rows.dtype} {tuple(rows.shape[1:])}".encode()
            for digest, row in zip(hashes, rows.reshape(len(rows), -1), strict=True):
                digest.update(said)
                digest.update(row.view(torch.uint8).numpy().data)
    return [digest.digest() for digest in hashes]


def _split(prefix: Prefix) -> list[Sample]:
    """Return the valid tokens of each sample, without gradients."""
    kv = prefix.kv
    both = torch.stack([torch.stack(kv.keys), torch.stack(kv.values)]).detach()
    if kv.mask is None:
        return list(both.unbind(2))
    return [both[:, :, number, mask] for number, mask in enumerate(kv.mask)]


def _joined(samples: Sequence[Sample], device: torch.device) -> Prefix:
    """Return the samples as one batch, padded at the end to the longest of them."""
    lengths = [sample.shape[2] for sample in samples]
    longest, (_, layers, _, width) = max(lengths), samples[0].shape
    dtype = samples[0].dtype
    both = torch.zeros(2, layers, len(samples), longest, width, dtype=dtype, device=device)
    for number, sample in enumerate(samples):
        both[:, :, number, : sample.shape[2]] = sample.to(device, non_blocking=True)
    num_valid: Int[Tensor, " b"] = torch.tensor(lengths, device=device)
    mask = None
    if min(lengths) < longest:
        mask = torch.arange(longest, device=device) < num_valid[:, None]
    return Prefix(KeyValues(list(both[0].unbind(0)), list(both[1].unbind(0)), mask), num_valid)
