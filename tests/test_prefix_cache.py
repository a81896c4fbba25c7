"""Prefixes that are kept give the losses and gradients of those that are computed, and are counted."""

import copy

import pytest
import torch
from conftest import CAMERA, TASKS, toy_policy

from pi0 import Indicator
from pi0.prefix_cache import PLACES, PrefixCache, prefix_bytes
from pi0.ript.kept_prefixes import keep_prefixes
from pi0.ript.loss import AdvantageLoss
from pi0.ript.policy_settings import PolicySettings
from pi0.ript.training.objectives import prefixed
from pi0.value import ValueFunction
from pi0.value_config import expert_value_config

MUCH = 2**24
SETTINGS = {place: PolicySettings(prefix_cache_gib=0.01, prefix_cache=place) for place in PLACES}


def samples(size: int = 4, seed: int = 7) -> dict:
    g = torch.Generator().manual_seed(seed)
    return {
        CAMERA: torch.randint(0, 256, (size, 48, 64, 3), dtype=torch.uint8, generator=g),
        "observation.state": torch.randn(size, 4, generator=g),
        "action": torch.randn(size, 8, 3, generator=g),
        "task": (TASKS * size)[:size],
        "advantage": torch.tensor([1.0, -1 / 3, 0.0, 0.5])[:size],
        "window": torch.arange(size),
    }


def take(batch: dict, rows: list[int]) -> dict:
    return {key: [x[i] for i in rows] if isinstance(x, list) else x[rows] for key, x in batch.items()}


def frozen(**config):
    policy = toy_policy(**config)
    policy.model.freeze("expert_only")
    return policy.train()


def gradients(policy, batch, indicator=None) -> dict[str, torch.Tensor]:
    """The loss and all gradients of a batch, at noise that depends on nothing else."""
    policy.zero_grad()
    loss = policy.loss(batch, indicator=indicator, generator=torch.Generator().manual_seed(1))
    loss.backward()
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), **{name: p.grad for name, p in trained.items() if p.grad is not None}}


CONFIGS = {
    "pi0": {},
    "embedding": {"indicator": "embedding"},
    "text": {"indicator": "text"},
    "pi05": {"pi05": True, "tokenizer_max_length": 80},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_are_those_of_computed_prefixes(name, place, tmp_path):
    """Prompts of two lengths, batches mixed anew: what is kept is put together with other padding."""
    policy, batch = frozen(**CONFIGS[name]), samples()
    indicator = Indicator.POSITIVE if name in ("embedding", "text") else None
    batches = [batch, take(batch, [2, 0]), take(batch, [1]), take(batch, [3, 1, 1])]
    expected = [gradients(policy, part, indicator) for part in batches]
    policy.prefixes = PrefixCache(MUCH, place, tmp_path)
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if name == "bfloat16" else {"rtol": 2e-4, "atol": 2e-5}
    for part, want in zip(batches, expected, strict=True):
        got = gradients(policy, part, indicator)
        assert got.keys() == want.keys()
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, **tolerance, msg=lambda m, key=key: f"{key}: {m}")
    assert (policy.prefixes.found, policy.prefixes.computed) == (6, 4)
    assert policy.prefixes.num_samples == 4


def test_a_sample_is_known_by_its_images_and_its_prompt():
    policy, batch = frozen(indicator="text"), samples()
    policy.prefixes = cache = PrefixCache(MUCH)
    policy.loss(batch)
    moved = {**batch, "observation.state": batch["observation.state"] + 1}
    policy.loss(moved)
    assert cache.computed == 4, "the state is no part of it"
    changed = batch[CAMERA].clone()
    changed[2, 5, 5, 1] ^= 1
    policy.loss({**batch, CAMERA: changed})
    assert cache.computed == 5, "one image is another by one bit"
    policy.loss({**batch, "task": [TASKS[1], *batch["task"][1:]]})
    assert cache.computed == 6
    policy.loss(batch, indicator=Indicator.POSITIVE)
    assert cache.computed == 10, "an indicator in the prompt is a part of it"


def test_one_that_is_full_computes_the_others_each_time():
    policy, batch = frozen(), samples()
    expected = policy.loss(batch, generator=torch.Generator().manual_seed(1))
    policy.prefixes = whole = PrefixCache(MUCH)
    policy.loss(batch)
    policy.prefixes = cache = PrefixCache(whole.size * 5 // 8)
    for passes in (1, 2, 3):
        loss = policy.loss(batch, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
        assert cache.num_samples == 2
        assert cache.computed == 4 + (passes - 1) * 2
    assert 0 < cache.size <= cache.budget


@pytest.mark.parametrize("place", PLACES)
def test_it_takes_what_it_says_and_gives_it_back(place, tmp_path):
    policy, batch = frozen(), samples()
    policy.prefixes = cache = PrefixCache(MUCH, place, tmp_path)
    policy.loss(batch)
    own = {s.untyped_storage().data_ptr(): s.untyped_storage().nbytes() for s in cache._samples.values()}
    if place != "disk":
        assert sum(own.values()) == cache.size, "no sample keeps a whole batch alive"
    assert cache.size <= 4 * prefix_bytes(policy.config, 1)
    assert not list(tmp_path.iterdir()), "a file that ends with the process has no name"
    cache.clear()
    assert (cache.size, cache.num_samples) == (0, 0)
    policy.loss(batch)
    assert cache.num_samples == 4


def test_the_objective_of_ript_forgets_what_does_not_come_again():
    policy = frozen(indicator="embedding")
    plain = AdvantageLoss(policy, 0.3, 2)
    batch = samples()
    expected = [plain(batch, seed=(0, iteration, step)) for iteration in (0, 1) for step in (0, 1)]
    policy.prefixes = cache = PrefixCache(MUCH)
    kept = AdvantageLoss(policy, 0.3, 2)
    losses, counts = [], []
    for iteration in (0, 1):
        for step in (0, 1):
            losses.append(kept(batch, seed=(0, iteration, step)))
            counts.append((cache.found, cache.computed))
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert counts == [(0, 4), (4, 4), (0, 4), (4, 4)]


def test_a_process_without_samples_in_a_step_has_a_loss_and_gradients():
    """Of an odd step of two processes: zeros, for every parameter that the other one has."""
    policy = frozen(indicator="embedding")
    policy.prefixes = PrefixCache(MUCH)
    AdvantageLoss(policy, 0.3, 2)(samples(), seed=(0, 0, 0))
    loss = AdvantageLoss(policy, 0.3, 2)(take(samples(), []), seed=(0, 0, 1))
    loss.backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_a_value_function_reads_what_its_policy_keeps():
    policy, batch = toy_policy(), samples()
    value = ValueFunction(expert_value_config(policy), policy, seed=1)
    observed = {key: batch[key] for key in (CAMERA, "observation.state", "task")}
    expected = value(observed)
    said = []
    assert prefixed(value) is policy
    keep_prefixes(policy, SETTINGS["memory"], said.append, 4, is_trained=False)
    assert policy.prefixes is not None
    for _ in range(2):
        torch.testing.assert_close(value(observed), expected, rtol=1e-4, atol=1e-5)
    assert (policy.prefixes.found, policy.prefixes.computed) == (4, 4)
    assert said[0].endswith("; 4 of 4 samples are kept (memory)")


def test_where_vision_or_language_is_trained_none_can_be_kept():
    policy = toy_policy().train()
    with pytest.raises(
        ValueError, match=r"prefix_cache_gib: (vision|vlm)\..* is trained.*freeze=expert_only"
    ):
        keep_prefixes(policy, SETTINGS["memory"], print)
    assert policy.prefixes is None


def test_augmented_images_are_others_each_time():
    policy, said = frozen(), []
    keep_prefixes(policy, SETTINGS["memory"], said.append, 4, is_augmented=True)
    assert policy.prefixes is None
    assert said == [
        "prefixes are not kept (policy.prefix_cache_gib): augmented images are others in every epoch"
    ]


def test_the_plan_says_what_it_would_take_and_recommends():
    policy, said = frozen(), []
    keep_prefixes(policy, PolicySettings(), said.append, 1000)
    each = prefix_bytes(policy.config, 1)
    assert policy.prefixes is None
    assert f"{1000 * each / 1e9:.3g} GB for 1000; kept, later epochs" in said[0]
    assert "policy.prefix_cache_gib" in said[0]
    said.clear()
    half = PolicySettings(prefix_cache_gib=500 * each / 2**30)
    keep_prefixes(policy, half, said.append, 1000)
    assert said[0].endswith("; 500 of 1000 samples are kept (memory)")
    said.clear()
    keep_prefixes(toy_policy().train(), PolicySettings(), said.append, 1000)
    assert said == [], "nothing to recommend where prefixes change"


def test_a_copy_of_a_policy_begins_without():
    policy = frozen()
    policy.prefixes = PrefixCache(MUCH)
    policy.loss(samples())
    assert copy.deepcopy(policy).prefixes is None
    assert policy.prefixes.num_samples == 4


def test_only_the_places_that_there_are():
    with pytest.raises(ValueError, match="expected one of device, memory, disk, found 'tape'"):
        PrefixCache(1, "tape")


def test_a_camera_of_another_batch_size_is_refused():
    policy, batch = frozen(), samples()
    policy.prefixes = PrefixCache(MUCH)
    with pytest.raises(ValueError, match="expected the batch size 4, found 3"):
        policy.loss({**batch, CAMERA: batch[CAMERA][:3]})


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_where_there_is_no_room_it_is_said_before_anything_is_kept(place):
    policy = frozen()
    much = PolicySettings(prefix_cache_gib=2.0**40, prefix_cache=place)
    with pytest.raises(ValueError, match=r"policy\.prefix_cache_gib: .* GB of prefixes.*lower it"):
        keep_prefixes(policy, much, print)
    keep_prefixes(policy, much, print, 4)  # four samples are all that there are
    assert policy.prefixes is not None
