"""Whether a training keeps the prefixes of its samples, and what is said about it; see `pi0.prefix_cache`."""

import shutil
import tempfile
from collections.abc import Callable

import psutil

from pi0 import PI0Policy
from pi0.errors import UnusableError
from pi0.prefix_cache import PrefixCache, prefix_bytes, trained_in_prefix
from pi0.ript.policy_settings import PolicySettings


def keep_prefixes(
    policy: PI0Policy,
    settings: PolicySettings,
    say: Callable[[str], object],
    num_samples: int | None = None,
    *,
    is_trained: bool = True,
    is_augmented: bool = False,
) -> None:
    """Give a policy a cache of prefixes if the settings ask for one.

    Where none is asked for and it would pay, what it would take is said.

    Args:
        policy: What is trained, or what a value function reads.
        settings: Say how many GiB, and where.
        say: Prints a line.
        num_samples: Different samples of the training; None: not known yet.
        is_trained: Whether the policy is; it then must not be trained in what makes a prefix.
        is_augmented: Whether images change in every epoch, so that no prefix is met again.

    Raises:
        UnusableError: The policy's vision or language is trained, or there is no room for what is to be kept.
    """
    policy.prefixes = None
    trained = trained_in_prefix(policy.model) if is_trained else None
    if not settings.prefix_cache_gib:
        if num_samples is not None and trained is None and not is_augmented:
            say(_plan(policy, settings, num_samples))
        return
    if is_augmented:
        say("prefixes are not kept (policy.prefix_cache_gib): augmented images are others in every epoch")
        return
    if trained is not None:
        raise UnusableError(
            f"policy.prefix_cache_gib: {trained} is trained, so a sample's prefix is another after each "
            "step; train the expert alone (policy.freeze=expert_only), or leave it out"
        )
    policy.prefixes = PrefixCache(int(settings.prefix_cache_gib * 2**30), settings.prefix_cache)
    whole = None if num_samples is None else num_samples * _bytes_each(policy)
    _require_room(settings.prefix_cache, min(policy.prefixes.budget, whole or policy.prefixes.budget))
    say(_plan(policy, settings, num_samples))


def _bytes_each(policy: PI0Policy) -> int:
    texts = 2 if policy.config.indicator == "text" else 1  # with and without the indicator
    return texts * prefix_bytes(policy.config, len(policy.features.present_cameras))


def _require_room(place: str, size: int) -> None:
    """Raise UnusableError unless so many bytes fit in memory or on the disk now; a GPU tells by itself."""
    directory = tempfile.gettempdir()
    rooms = {
        "memory": ("of memory are available", psutil.virtual_memory().available),
        "disk": (f"are free in {directory}", shutil.disk_usage(directory).free),
    }
    what, free = rooms.get(place, ("", size))
    if size > free:
        raise UnusableError(
            f"policy.prefix_cache_gib: {size / 1e9:.3g} GB of prefixes would be kept, and "
            f"{free / 1e9:.3g} GB {what}; lower it, or choose another policy.prefix_cache"
        )


def _plan(policy: PI0Policy, settings: PolicySettings, num_samples: int | None) -> str:
    each = _bytes_each(policy)
    takes = f"prefixes: at most {each / 1e6:.3g} MB a sample"
    if policy.prefixes is None:
        whole = f"{(num_samples or 0) * each / 1e9:.3g} GB for {num_samples}"
        return f"{takes}, {whole}; kept, later epochs would not compute them: policy.prefix_cache_gib"
    kept, place = policy.prefixes.budget // each, settings.prefix_cache
    if num_samples is None:
        return f"{takes}; up to {kept} samples are kept ({place})"
    return f"{takes}; {min(kept, num_samples)} of {num_samples} samples are kept ({place})"
