import pytest
import torch
from contenders import build, check_agreement
from measure import interleaved
from ours import observation
from report import print_roofline, print_table
from roofline import GPUS, cost, gpu
from sizes import SIZES, make_inputs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

TINY = SIZES["tiny"]
MACHINE = {"processor": "a processor", "torch": "2"}


@pytest.mark.parametrize(
    ("cameras", "tokens", "forward", "sample"),
    [(3, 48, 3.85, 4.19), (2, 48, 2.62, 2.95), (2, 20, 2.51, 2.83), (1, 20, 1.30, 1.61)],
)
def test_teraflops_of_the_real_size(cameras, tokens, forward, sample):
    counted = cost(SIZES["real"], cameras, tokens)
    assert counted.forward / 1e12 == pytest.approx(forward, abs=0.01)
    assert counted.sample_flops() / 1e12 == pytest.approx(sample, abs=0.01)


@pytest.mark.parametrize(("cameras_real", "prompt_tokens"), [(1, 5), (2, 12)])
def test_formula_counts_what_the_policy_computes(cameras_real, prompt_tokens):
    model = build(TINY, names=["ours"])["ours"].model
    inputs = make_inputs(TINY, 2, cameras_real, prompt_tokens)
    draws = {"noise": inputs.noise[None], "time": inputs.time[None]}
    # the counter knows plain matrix products only
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.loss(observation(inputs), inputs.actions, **draws)
    expected = 2 * cost(TINY, cameras_real, prompt_tokens).forward
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_contenders_agree_and_a_changed_one_is_found_out():
    contenders = build(TINY)
    inputs = make_inputs(TINY)
    errors = check_agreement(contenders, inputs, "float32")
    assert errors["ours"]["gradient norm"] < 1e-5
    contenders["ours"].set_expert_only(True)
    with pytest.raises(RuntimeError, match="gradient norm of ours"):
        check_agreement(contenders, inputs, "float32")
    for contender in contenders.values():
        contender.set_expert_only(True)
    check_agreement(contenders, inputs, "float32")
    with torch.no_grad():
        contenders["ours"].model.get_parameter("action_out_proj.bias").add_(1e-3)
    with pytest.raises(RuntimeError, match="losses of ours: expected a relative error"):
        check_agreement(contenders, inputs, "float32")


def test_contenders_agree_in_bfloat16():
    check_agreement(build(TINY, "bfloat16"), make_inputs(TINY), "bfloat16")


def test_runs_are_interleaved_after_one_that_is_not_counted():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = list(interleaved(runs, 2, lambda run: run() or 1.0))
    assert calls == ["a", "b"] * 3
    assert found == [("a", None), ("b", None)] + [("a", 1.0), ("b", 1.0)] * 2


def test_unknown_gpu_needs_its_figures():
    assert gpu("NVIDIA H200") == GPUS["NVIDIA H200"]
    assert gpu("some GPU", 1e14, 1e12).flops == 1e14
    with pytest.raises(ValueError, match=r"found 'some GPU'; give --peak-tflops"):
        gpu("some GPU", flops=1e14)


def figures(**arguments):
    setting = {"size": "mid", "batch": 2, "prompt_tokens": 20, "device": "cpu", "dtype": "float32"}
    every = {name: [0.3, 0.4] for name in ("lerobot", "transformers", "transformers trimmed")}
    cases = {
        "train step": {"ours": [0.09, 0.1], **every},
        "sample": {"ours": [0.2, 0.2], **every},
        "guided sample": {"ours": [0.3, 0.3], "ours unguided": [0.2, 0.2]},
        "latency, batch 1": {"ours": [0.01, 0.02], **every},
    }
    return {
        "arguments": setting | {"threads": 1, "rounds": 2, "keep_freed_memory": False} | arguments,
        "machine": MACHINE,
        "seconds": {"2 of 3": cases},
        "peak_bytes": {"2 of 3": {"ours": 2**20, "lerobot": 2**21, "transformers": 2**22}},
    }


def row(text, *starts):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return next(line for line in lines if line[: len(starts)] == list(starts))


def test_table_marks_targets_only_in_their_setting(capsys):
    print_table(figures())
    text = capsys.readouterr().out
    assert row(text, "2 of 3", "train step")[-1] == "pass, pass, pass"
    assert row(text, "2 of 3", "sample")[-1] == "MISS, MISS, pass"
    assert row(text, "2 of 3", "peak memory of a train step")[-2:] == ["<= 0.33x lerobot", "MISS"]
    assert row(text, "2 of 3", "guided sample (1.50x unguided)")
    print_table(figures(batch=4))
    text = capsys.readouterr().out
    assert "3.67x" in row(text, "2 of 3", "train step")
    assert row(text, "2 of 3", "train step")[-1] == ""


def test_roofline_shows_utilisation_and_latency(capsys):
    print_roofline(figures(size="real", dtype="bfloat16", device="cuda"), SIZES["real"], gpu("NVIDIA H200"))
    text = capsys.readouterr().out
    train = row(text, "2 of 3", "train step", "ours")
    # 2 samples x 3 x 2.51 TFLOP in 0.09 s at 989 TFLOP/s
    assert train[-3:] == ["16.9%", "MFU >= 45%", "MISS"]
    assert row(text, "2 of 3", "latency, batch 1", "ours")[-2:] == ["<= 15 ms", "pass"]
    assert row(text, "2 of 3", "latency, batch 1", "lerobot")[-1] == ""
