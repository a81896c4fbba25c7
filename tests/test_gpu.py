"""What only a GPU can show: equality with the CPU, and sampling by captured graphs. Imports `pi0/` alone."""

import copy

import pytest
import torch
from conftest import CAMERA, TASKS, toy_policy

from pi0 import PI0Policy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
EXACT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def observations(tasks: list[str], seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    size = len(tasks)
    return {
        CAMERA: torch.randint(0, 256, (size, 48, 64, 3), dtype=torch.uint8, generator=generator),
        "observation.state": torch.randn(size, 4, generator=generator),
        "action": torch.randn(size, 8, 3, generator=generator),
        "task": tasks,
    }


def draws(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, size, 8, 8, generator=generator), torch.rand(1, size, generator=generator)


def on_both(**config) -> tuple[PI0Policy, PI0Policy]:
    policy = toy_policy(**config)
    return policy, copy.deepcopy(policy).to("cuda")


@pytest.mark.parametrize("config", [{}, {"pi05": True}, {"indicator": "text"}, {"indicator": "embedding"}])
def test_actions_equal_those_of_the_cpu(config):
    host, gpu = on_both(**config)
    noise, _ = draws(2)
    expected = host.sample_actions(observations(TASKS), noise=noise[0])
    actions = gpu.sample_actions(observations(TASKS), noise=noise[0].cuda())
    torch.testing.assert_close(actions.cpu(), expected, **EXACT)


@pytest.mark.parametrize("config", [{}, {"pi05": True}])
def test_loss_and_gradients_equal_those_of_the_cpu(config):
    host, gpu = on_both(**config)
    noise, time = draws(2)
    expected = host.loss(observations(TASKS), noise=noise, time=time)
    loss = gpu.loss(observations(TASKS), noise=noise.cuda(), time=time.cuda())
    torch.testing.assert_close(loss.cpu(), expected, **EXACT)
    expected.backward()
    loss.backward()
    for (name, parameter), (_, other) in zip(
        gpu.model.named_parameters(), host.model.named_parameters(), strict=True
    ):
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad.cpu(), other.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("config", "guidance"),
    [
        ({}, 1.0),
        ({"pi05": True}, 1.0),
        ({"indicator": "embedding"}, 2.0),
        ({"indicator": "text"}, 2.0),
    ],
)
def test_replayed_graphs_equal_the_eager_sampler(config, guidance):
    eager = toy_policy(**config).to("cuda")
    policy = copy.deepcopy(eager).use_graphs()
    assert policy._graphed is not None
    for tasks in (TASKS[:1], TASKS[1:], TASKS):
        for seed in (0, 1):
            noise = draws(len(tasks), seed)[0][0].cuda()
            expected = eager.sample_actions(observations(tasks, seed), noise=noise, guidance=guidance)
            actions = policy.sample_actions(observations(tasks, seed), noise=noise, guidance=guidance)
            torch.testing.assert_close(actions, expected, **EXACT)
    assert policy._graphed.num_captures < 6


def test_a_graph_follows_weights_that_training_changes():
    eager = toy_policy().to("cuda")
    policy = copy.deepcopy(eager).use_graphs()
    noise, time = draws(2)
    batch = observations(TASKS)
    before = policy.sample_actions(batch, noise=noise[0].cuda())
    for each in (eager, policy):
        optimizer = torch.optim.AdamW(each.parameters(), lr=1e-2)
        each.loss(batch, noise=noise.cuda(), time=time.cuda()).backward()
        optimizer.step()
    after = policy.sample_actions(batch, noise=noise[0].cuda())
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, eager.sample_actions(batch, noise=noise[0].cuda()), **EXACT)
    assert policy._graphed is not None
    assert policy._graphed.num_captures == 1


def test_compiled_blocks_compute_the_same_and_can_be_captured():
    eager = toy_policy().to("cuda")
    noise = draws(2)[0][0].cuda()
    expected = eager.sample_actions(observations(TASKS), noise=noise)
    policy = copy.deepcopy(eager)
    policy.model.compile_blocks()
    torch.testing.assert_close(policy.sample_actions(observations(TASKS), noise=noise), expected, **EXACT)
    policy.use_graphs()
    torch.testing.assert_close(policy.sample_actions(observations(TASKS), noise=noise), expected, **EXACT)


def test_bfloat16_is_near_float32_for_inference_and_training():
    exact = toy_policy().to("cuda")
    policy = toy_policy(dtype="bfloat16").to("cuda")
    noise, time = (tensor.cuda() for tensor in draws(2))
    expected = exact.sample_actions(observations(TASKS), noise=noise[0])
    error = (policy.sample_actions(observations(TASKS), noise=noise[0]) - expected).norm() / expected.norm()
    assert 0 < error < 0.02
    loss = policy.loss(observations(TASKS), noise=noise, time=time)
    torch.testing.assert_close(
        loss, exact.loss(observations(TASKS), noise=noise, time=time), rtol=0.02, atol=0.02
    )
    loss.backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.grad is not None)


def test_a_policy_saved_on_a_gpu_is_the_same_on_a_cpu(tmp_path):
    policy = toy_policy().to("cuda")
    policy.save_pretrained(tmp_path)
    again = PI0Policy.from_pretrained(tmp_path)
    for (name, parameter), (_, other) in zip(
        policy.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert torch.equal(parameter.cpu(), other), name
