"""FSDP gives what DDP gives: losses, files, actions; its checkpoints go on with any number of processes."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAMERA, toy_policy
from forked import together
from ladder_runs import MINIMAL
from test_distributed import window_batch
from torch.distributed.tensor import DTensor

from pi0 import PI0Policy
from pi0.checkpoint_names import WEIGHTS
from pi0.errors import UnusableError
from pi0.ript.checkpoint import SnapshotError, load_checkpoint, save_checkpoint
from pi0.ript.checkpoint.parts import PARTS, join_optimizer, read_index, split_optimizer
from pi0.ript.config import load_config_from_yaml
from pi0.ript.config.loading import engine
from pi0.ript.distributed import World, cleanup_distributed, setup_distributed
from pi0.ript.loss import AdvantageLoss
from pi0.ript.lost_peers import PeerLostError, RollCall
from pi0.ript.monitoring import take_step
from pi0.ript.rollout import GuidedPolicy
from pi0.ript.windows import batches

ORDER = np.array([6, 2, 0, 1, 5, 3, 4])
SETTINGS = {"training": {}}


def small_policy(**config) -> PI0Policy:
    return toy_policy(indicator="embedding", **config)


def with_adapters() -> PI0Policy:
    """A policy whose parts are held in different ways: frozen and rounded, adapters, and what stays exact."""
    sizes = small_policy().config
    lora = {"lora_rank": 2, "lora_alpha": 2.0}
    vlm, expert = replace(sizes.vlm, **lora), replace(sizes.expert, **lora)
    policy = small_policy(dtype="bfloat16", vlm=vlm, expert=expert)
    policy.model.freeze("lora", "bfloat16")
    return policy


class Run:
    """The ladder's loop on seven windows: steps of five and two of them, in micro-batches of two."""

    def __init__(self, world: World, policy: PI0Policy | None = None) -> None:
        self.world, self.policy = world, policy or small_policy()
        self.learner = world.wrap(AdvantageLoss(self.policy, 0.1))
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), lr=1e-3)
        self.figures: list[tuple[float, float]] = []

    def improve(self, *iterations: int, order: np.ndarray = ORDER) -> list[tuple[float, float]]:
        """Return losses and gradient norms."""
        figures = []
        for iteration in iterations:
            self.policy.train()
            for number, step in enumerate(batches(order, 5)):
                total = torch.zeros(())
                for micro_batch in self.world.micro_batches(self.learner, step, 2):
                    loss = self.learner(window_batch(micro_batch), seed=(iteration, number)) / len(step)
                    self.world.backward(loss)
                    total += loss.detach()
                norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
                loss = self.world.sum(total)
                assert take_step(self.optimizer, loss, norm)
                figures.append((loss, float(norm)))
            self.policy.eval()
            self.world.require_equal(self.learner)
        return figures

    def whole(self) -> dict[str, torch.Tensor]:
        """Return copies of the parameters, gathered."""
        self.policy.eval()
        return {name: parameter.detach().clone() for name, parameter in self.policy.named_parameters()}

    def act(self) -> torch.Tensor:
        config = self.policy.config
        noise = torch.ones(1, config.chunk_size, config.max_action_dim)
        return self.policy.sample_actions(window_batch(np.array([2])), noise=noise)


def joined(strategy: str = "fsdp", **options) -> World:
    return setup_distributed("cpu", timeout_seconds=100, strategy=strategy, **options)


def bytes_of(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def one_of_two(place: Path) -> dict:
    """What each of two processes does."""
    world = joined()
    found: dict = {}
    for strategy in ("ddp", "fsdp"):
        own = replace(world, is_sharded=False, loans=None) if strategy == "ddp" else world
        run = Run(own)
        found[strategy] = {"figures": run.improve(0, 1), "parameters": run.whole()}
        run = Run(own)
        found[strategy]["one window"] = run.improve(0, order=np.array([6]))  # one process has nothing to do
    found |= {"acting": acting(world), "saved": saved(world, place), "in flight": in_flight(world)}
    found["checkpoint"] = checkpoint(world, place)
    cleanup_distributed()
    return found


def acting(world: World) -> dict:
    """Rank 1 alone infers, which no other process may be needed for; then both learn."""
    run, plain = Run(world), small_policy()
    before = {isinstance(parameter, DTensor) for parameter in run.policy.parameters()}
    GuidedPolicy(run.policy)
    gathered = {isinstance(parameter, DTensor) for parameter in run.policy.parameters()}
    actions = [run.act() for _ in range(3 * world.rank)]
    figures = run.improve(0)
    run.policy.train()
    held = sum(p.to_local().numel() for p in run.policy.parameters() if isinstance(p, DTensor))
    return {
        "in parts": [before, gathered],
        "actions": actions,
        "expected": Run(World(), plain).act(),
        "figures": figures,
        "share": held / sum(parameter.numel() for parameter in plain.parameters()),
    }


def saved(world: World, place: Path) -> list[tuple[dict, dict]]:
    """Files written before the weights are in parts, and after, in training and in evaluation mode."""
    pairs = []
    for name, policy in {"exact": small_policy(), "adapters": with_adapters()}.items():
        before, after = place / f"{name}-before", place / f"{name}-after"
        world.on_main(policy.save_pretrained, before, max_shard_size=50_000)
        world.wrap(AdvantageLoss(policy, 0.1))
        for mode in (True, False):
            policy.train(mode)
            world.on_main(policy.save_pretrained, after, max_shard_size=50_000)
            pairs.append((bytes_of(before), bytes_of(after)) if world.rank == 0 else ({}, {}))
    return pairs


def in_flight(world: World) -> dict:
    """A computation in bfloat16, whose large weights travel in it or in float32."""
    policies = {
        None: small_policy(dtype="bfloat16"),
        "float32": small_policy(dtype="bfloat16"),
        "frozen": with_adapters(),
        "pi05": toy_policy(indicator="text", pi05=True, dtype="bfloat16"),
    }
    found = {}
    for name, policy in policies.items():
        own = replace(world, gather_dtype="float32") if name == "float32" else world
        run = Run(own, policy)
        figures = run.improve(0)
        dtypes = {n: p.dtype for n, p in policy.model.named_parameters() if "blocks.0" in n}
        found[name] = figures, dtypes
    plain = replace(world, is_sharded=False, loans=None)
    alike = {
        "ddp": small_policy(dtype="bfloat16"),
        "ddp frozen": with_adapters(),
        "ddp pi05": toy_policy(indicator="text", pi05=True, dtype="bfloat16"),
    }
    for name, policy in alike.items():
        found[name] = Run(plain, policy).improve(0), None
    return found


def checkpoint(world: World, place: Path) -> dict:
    """A run that leaves a checkpoint after its second iteration and goes on; and one that goes on from it."""
    run = Run(world)
    run.improve(0, 1)
    path = save_checkpoint(run.policy, run.optimizer, 2, SETTINGS, place / "run", peers=world)
    acted, rest, other = run.act(), run.improve(2, 3), Run(world)
    GuidedPolicy(other.policy)  # gathered, as after the evaluation before training
    load_checkpoint(path, other.policy, other.optimizer, peers=world)
    actions = [acted, other.act()]
    again, parameters = other.improve(2, 3), other.whole()
    return {"rest": rest, "again": again, "actions": actions, "whole": [run.whole(), parameters]}


def one_of_four(path: Path) -> list[tuple[float, float]]:
    world = joined()
    run = Run(world)
    load_checkpoint(path, run.policy, run.optimizer, peers=world)
    return run.improve(3)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def pair(place):
    return together(2, place / "pair", one_of_two, place)


def test_losses_and_gradients_are_those_of_ddp(pair):
    for found in pair:
        ddp, fsdp = found["ddp"], found["fsdp"]
        assert np.allclose(fsdp["figures"], ddp["figures"], rtol=1e-5, atol=0)
        assert np.allclose(fsdp["one window"], ddp["one window"], rtol=1e-5, atol=0)
        assert fsdp["parameters"].keys() == ddp["parameters"].keys()
        for name, parameter in fsdp["parameters"].items():
            # AdamW turns the sign of a gradient near 0 into a whole step.
            assert (parameter - ddp["parameters"][name]).abs().mean() < 1e-5, name
    assert len({loss for loss, _ in pair[0]["fsdp"]["figures"]}) == 4


def test_a_process_that_acts_alone_waits_for_nobody_and_acts_as_one_that_has_everything(pair):
    for found in pair:
        acting = found["acting"]
        assert acting["in parts"] == [{True}, {False}]
        assert acting["share"] == pytest.approx(0.5, abs=0.02)
        for actions in acting["actions"]:
            assert torch.equal(actions, acting["expected"])
    assert len(pair[1]["acting"]["actions"]) == 3
    assert pair[0]["acting"]["figures"] == pair[1]["acting"]["figures"]


def test_files_written_from_parts_are_those_of_whole_weights(pair):
    for before, after in pair[0]["saved"]:
        assert before == after
        assert sum(name.endswith(".safetensors") and name.startswith("model-") for name in before) > 1


def test_what_travels_in_bfloat16_is_only_what_is_rounded_anyway(pair):
    found = pair[0]["in flight"]
    for name, exact in {None: "ddp", "frozen": "ddp frozen", "pi05": "ddp pi05"}.items():
        figures, dtypes = found[name]
        assert figures[0][0] == found[exact][0][0][0], "the first loss, bit for bit"
        assert np.allclose(figures, found[exact][0], rtol=1e-2)
        for parameter, dtype in dtypes.items():
            is_rounded = not parameter.startswith("vision") and "norm" not in parameter
            assert dtype is (torch.bfloat16 if is_rounded else torch.float32), parameter
    figures, dtypes = found["float32"]
    assert np.allclose(figures, found["ddp"][0], rtol=1e-3)
    assert set(dtypes.values()) == {torch.float32}


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(pair):
    for found in pair:
        checkpoint = found["checkpoint"]
        assert checkpoint["rest"] == checkpoint["again"]
        assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in checkpoint["whole"]), strict=True))
        assert torch.equal(*checkpoint["actions"]), "it acts with the weights that were read"


@pytest.fixture(scope="module")
def alone(pair, place):
    """A single process that goes on from the checkpoint of two, and leaves one of its own."""
    world = World(is_sharded=True)
    run = Run(world)
    load_checkpoint(place / "run/checkpoint-2", run.policy, run.optimizer, peers=world)
    figures = run.improve(2)
    path = save_checkpoint(run.policy, run.optimizer, 3, SETTINGS, place / "run", peers=world)
    return {"figures": figures + run.improve(3), "path": path}


def test_other_numbers_of_processes_go_on_from_it(pair, alone, place):
    rest = pair[0]["checkpoint"]["rest"]
    assert np.allclose(alone["figures"], rest, rtol=1e-4)
    four = together(4, place / "four", one_of_four, alone["path"])
    assert np.allclose(four[3], rest[2:], rtol=1e-4)


def test_the_policy_of_a_checkpoint_is_whole(alone):
    policy = PI0Policy.from_pretrained(alone["path"] / "policy")
    assert policy.sample_actions(window_batch(np.array([2]))).isfinite().all()
    assert (alone["path"] / "policy" / WEIGHTS).exists()
    assert CAMERA in policy.features.image_keys


def test_ddp_does_not_go_on_from_it_nor_the_other_way_round(alone, tmp_path):
    run = Run(World())
    with pytest.raises(SnapshotError, match=r"strategy=fsdp, this run has ddp.*policy_path=.*/policy"):
        load_checkpoint(alone["path"], run.policy, run.optimizer)
    path = save_checkpoint(run.policy, run.optimizer, 1, SETTINGS, tmp_path)
    with pytest.raises(SnapshotError, match="strategy=ddp, this run has fsdp"):
        load_checkpoint(path, run.policy, run.optimizer, peers=World(is_sharded=True))


def test_old_keys_and_accelerates_fsdp_ask_for_it(monkeypatch, capsys):
    for value, strategy in {"true": "fsdp", "false": "ddp"}.items():
        config = load_config_from_yaml(MINIMAL, [f"distributed.use_fsdp={value}"])
        assert config.distributed.strategy == strategy
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert engine("ddp") == "fsdp"
    assert "as accelerate's configuration asks" in capsys.readouterr().out


def lost(gathers: str) -> str:
    """One process leaves; the other finds out when it gathers."""
    run = Run(joined())
    if run.world.rank == 0:
        with pytest.raises(PeerLostError) as error:
            run.improve(0) if gathers == "for a pass" else run.policy.eval()
        return str(error.value)
    return ""


@pytest.mark.parametrize("gathers", ["for a pass", "to act"])
def test_a_process_that_is_lost_when_weights_are_gathered_is_named(place, gathers):
    assert "rank 0: rank 1 ended" in together(2, place / "lost", lost, gathers)[0]


class Harmful:
    """What a pickle could do."""

    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def test_an_index_that_asks_for_anything_but_dcps_classes_is_refused(alone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = read_index(alone["path"] / PARTS)
    for harm in (Harmful(), replace(index, planner_data=Harmful())):
        (tmp_path / ".metadata").write_bytes(pickle.dumps(harm))
        with pytest.raises(SnapshotError, match="not an index of parts"):
            read_index(tmp_path)
    assert not (tmp_path / "harmed").exists()
    index.state_dict_metadata["more"] = torch.distributed.checkpoint.metadata.BytesStorageMetadata()
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(SnapshotError, match=r"BytesStorageMetadata"):
        read_index(tmp_path)


def test_bfloat16_does_not_travel_where_float32_is_computed(place):
    [message] = together(1, place / "one", refused, None)
    assert "policy.dtype=bfloat16" in message


def refused(_) -> str:
    from pi0.ript.sharding import Loans, shard

    with pytest.raises(UnusableError) as error:
        shard(AdvantageLoss(small_policy(), 0.1), 2, Loans(RollCall(), None), "bfloat16")
    return str(error.value)


def test_an_optimizer_that_has_frozen_parameters_too_is_split_and_joined():
    """As in the ladder, whose optimizer is given all of a learner's parameters."""
    trained, frozen = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    frozen.requires_grad_(False)
    names = {trained: "trained"}

    def optimizer():
        return torch.optim.AdamW([frozen, trained], lr=0.1)

    first = optimizer()
    trained.grad = torch.ones(3)
    first.step()
    tensors, rest = split_optimizer(first, names)
    assert {*tensors} == {"optimizer.exp_avg.trained", "optimizer.exp_avg_sq.trained"}
    second = optimizer()
    targets = join_optimizer(second, names, rest, {name: tuple(x.shape) for name, x in tensors.items()})
    for name, target in targets.items():
        target.copy_(tensors[name])
    for key, value in first.state[trained].items():
        torch.testing.assert_close(second.state[trained][key], value)
