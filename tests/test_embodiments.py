"""Several robots in one mixture and one policy: statistics, widths, the loss, files, and what is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_sets
import torch
from conftest import CAMERA, METAWORLD, metaworld_policy, opened, toy_policy
from safetensors.torch import load_file
from small_sets import ACTION, SIDE, STATE
from test_pretrained import lerobot_actions_of, raw_batch, raw_noise, tiny_policy

from pi0 import PI0Policy, compute_statistics
from pi0.embodiment import Embodiment, EmbodimentError
from pi0.ript import exporting
from pi0.ript.commands import advantage, evaluate, export, serve, trial_checks
from pi0.ript.commands.findings import Request
from pi0.ript.config import ConfigError, load_config_from_yaml, validate_config
from pi0.ript.data.settings import DatasetSettings, MixtureSettings
from pi0.ript.environments import get_environment
from pi0.ript.recap.config import RecapConfig
from pi0.ript.recap.validation import validate_recap
from pi0.ript.scripts import train
from pi0.ript.serving.server import PolicyServer
from pi0.ript.serving.wire import pack
from pi0.ript.starting_policy import starting_policy
from pi0.ript.supervised.data_summary import DataSummary

WIDTHS = {"arm": (4, 6), "hand": (7, 8)}
"""Numbers of a state and of an action."""
CENTRES = {"arm": 5.0, "hand": -20.0}
STEPS = 4


def robot_set(root: Path, tag: str, number: int = 0, names: list[str] | None = None) -> Path:
    """A data set of a robot, whose values lie around its centre; the other set of it lies a little apart."""
    made = small_sets.draft([6, 5, 7])
    sizes = dict(zip((STATE, ACTION), WIDTHS[tag], strict=True))
    for row in made.rows:
        for key, size in sizes.items():
            drawn = np.random.default_rng((row["code"], size, number)).normal(
                CENTRES[tag] + number, 1.5, size
            )
            row[key] = drawn.astype(np.float32)
    features = small_sets._info(made)["features"]
    for key, size in sizes.items():
        features[key] |= {"shape": [size], "names": {"motors": names} if names and key == STATE else None}
    made.info = {"features": features}
    return small_sets.write(made, root)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("robots")
    return {
        "arm": robot_set(base / "arm", "arm"),
        "arm-2": robot_set(base / "arm-2", "arm", 1),
        "hand": robot_set(base / "hand", "hand"),
    }


def entry(root: Path, tag: str | None = None) -> dict:
    return {"root": str(root), **({"embodiment_tag": tag} if tag else {})}


def two_robots(sets: dict[str, Path]) -> list[dict]:
    return [entry(sets["arm"], "arm"), entry(sets["hand"], "hand"), entry(sets["arm-2"], "arm")]


def settings_file(directory: Path, datasets: list[dict], **changes) -> str:
    """The file of a training, of 4 steps unless `changes` say more."""
    policy = {"chunk_size": 4, "advantage": "ignore", **changes.pop("policy", {})}
    values = {
        "policy": policy,
        "dataset_mixture": {"datasets": datasets, "num_workers": 0},
        "batch_size": 6,
        "steps": STEPS,
        "save_freq": 2,
        "log_freq": 1,
        "device": "cpu",
        "output_dir": str(directory),
        "exp_name": "run",
        **changes,
    }
    directory.mkdir(exist_ok=True)
    (directory / "settings.json").write_text(json.dumps(values))
    return f"--config_path={directory / 'settings.json'}"


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory) -> Path:
    """A toy of two robots, by the command."""
    base = tmp_path_factory.mktemp("trained")
    assert train.main([settings_file(base, two_robots(sets))]) == 0
    return base / "run"


def frames_of(*roots: Path) -> dict[str, np.ndarray]:
    found = [opened(root) for root in roots]
    return {
        STATE: np.concatenate([frames.states for frames in found]),
        ACTION: np.concatenate([frames.actions for frames in found]),
    }


# What is trained and saved ----------------------------------------------------------------------------------


def test_the_policy_has_the_ids_and_the_statistics_of_both_robots(sets, trained):
    """Those of a robot are merged over its data sets, and of no others."""
    policy = PI0Policy.from_pretrained(trained)
    assert policy.embodiments.tags == ("arm", "hand")
    assert (policy.config.max_state_dim, policy.config.max_action_dim) == (7, 8)
    values = {"arm": frames_of(sets["arm"], sets["arm-2"]), "hand": frames_of(sets["hand"])}
    for tag, robot in policy.embodiments.known().items():
        assert (robot.features.state_dim, robot.features.action_dim) == WIDTHS[tag]
        for key in (STATE, ACTION):
            expected = compute_statistics(values[tag][key])
            for name in ("mean", "std", "min", "max", "q01", "q99", "count"):
                torch.testing.assert_close(robot.statistics[key][name], expected[name])
    for place in (
        trained,
        trained / "checkpoint-2",
        trained / "processor",
        trained / "checkpoint-4/processor",
    ):
        assert json.loads((place / "embodiment_id.json").read_text()) == {"arm": 0, "hand": 1}
    processor = json.loads((trained / "processor/statistics.json").read_text())["statistics"]
    assert processor == json.loads((trained / "embodiment_statistics.json").read_text())
    assert torch.equal(torch.tensor(processor["hand"][STATE]["mean"]), robot.statistics[STATE]["mean"])


def test_a_resumed_run_is_the_uninterrupted_one(sets, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    for name in ("checkpoint-4", "checkpoints"):
        shutil.rmtree(tmp_path / "run" / name)
    (tmp_path / "run/model.safetensors").unlink()
    assert train.main([settings_file(tmp_path, two_robots(sets)), "--resume"]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (trained, tmp_path / "run"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    early = load_file(trained / "checkpoint-2/model.safetensors")
    assert not all(torch.equal(before[name], early[name]) for name in before)


def test_a_single_robot_is_trained_alike_with_and_without_a_tag(sets, tmp_path):
    """The tag adds its files; without one nothing speaks of robots."""
    runs = {}
    for tag in (None, "arm"):
        base = tmp_path / str(tag)
        assert train.main([settings_file(base, [entry(sets["arm"], tag)], steps=2)]) == 0
        runs[tag] = base / "run"
    plain, named = (load_file(run / "model.safetensors") for run in runs.values())
    assert all(torch.equal(plain[name], named[name]) for name in plain)
    files = {tag: {str(p.relative_to(run)) for p in run.rglob("*")} for tag, run in runs.items()}
    added = {path for path in files["arm"] - files[None] if not path.startswith("experiment_cfg")}
    assert {Path(path).name for path in added} == {"embodiment_id.json", "embodiment_statistics.json"}
    assert "embodiment" not in (runs[None] / "pi0_config.json").read_text()
    assert "embodiment" not in (runs[None] / "processor/processor_config.json").read_text()
    assert PI0Policy.from_pretrained(runs["arm"]).embodiments.chosen == "arm"  # the only one is taken


def test_a_base_gets_robots_from_the_data_and_keeps_those_that_it_knows(sets, trained, tmp_path, capsys):
    base = toy_policy({"state_dim": 4, "action_dim": 6}, max_action_dim=8, tasks=["do thing 0", "do thing 1"])
    base.save_pretrained(tmp_path / "base")
    path = str(tmp_path / "base")
    assert train.main([settings_file(tmp_path, two_robots(sets), policy_path=path)]) == 2
    assert "the checkpoint are those of one robot, found arm, hand; take the data's own" in last_line(capsys)
    own = {"statistics": "data"}
    file = settings_file(tmp_path, two_robots(sets), policy_path=path, policy=own, steps=1, val_freq=1)
    assert train.main([file]) == 0
    assert '"val_loss"' in (tmp_path / "run/metrics.jsonl").read_text()
    first = PI0Policy.from_pretrained(tmp_path / "run", embodiment="hand")
    assert (first.features.state_dim, first.embodiments.tags) == (7, ("arm", "hand"))
    only = settings_file(
        tmp_path, [entry(sets["hand"], "hand")], policy_path=str(trained), exp_name="b", steps=1
    )
    assert train.main([only]) == 0
    second, before = PI0Policy.from_pretrained(tmp_path / "b"), PI0Policy.from_pretrained(trained)
    assert second.embodiments.chosen == "hand"  # the policy acts as the robot that it was trained for
    for tag, robot in second.embodiments.known().items():
        numbers = before.embodiments.known()[tag].statistics
        assert torch.equal(robot.statistics[ACTION]["mean"], numbers[ACTION]["mean"])


# The loss ---------------------------------------------------------------------------------------------------


def mixed_batch(sets: dict[str, Path], **changes) -> dict:
    """Samples of both robots as training gets them, from the data sets' own values."""
    g = np.random.default_rng(3)
    order, state, action = [0, 1, 1, 0], np.zeros((4, 7), np.float32), np.zeros((4, 4, 8), np.float32)
    for place, number in enumerate(order):
        values = frames_of(sets[list(WIDTHS)[number]])
        state[place, : values[STATE].shape[1]] = values[STATE][place]
        action[place, :, : values[ACTION].shape[1]] = values[ACTION][place : place + 4]
    return {
        CAMERA: torch.from_numpy(g.integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)),
        STATE: torch.from_numpy(state),
        ACTION: torch.from_numpy(action),
        "action_is_pad": torch.tensor([[False] * 4, [False, False, True, True], [False] * 4, [False] * 4]),
        "task": ["do thing 0"] * 4,
        "embodiment_id": torch.tensor(order),
        **changes,
    }


def draws(policy: PI0Policy) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    shape = (1, 4, policy.config.chunk_size, policy.config.max_action_dim)
    return {"noise": torch.randn(shape, generator=g), "time": torch.rand(1, 4, generator=g)}


def test_the_loss_of_a_sample_is_the_mean_over_what_its_robot_has(sets, trained):
    policy, batch = PI0Policy.from_pretrained(trained), mixed_batch(sets)
    losses = policy.loss(batch, reduction="sample", **draws(policy))
    state, target = torch.zeros(4, 7), torch.zeros(4, 4, 8)
    for place, number in enumerate(batch["embodiment_id"].tolist()):
        robot = list(policy.embodiments.known().values())[number]
        for key, out in ((STATE, state), (ACTION, target)):
            mean, std = robot.statistics[key]["mean"], robot.statistics[key]["std"]
            own = batch[key][place][..., : len(mean)]
            out[place][..., : len(mean)] = (own - mean) / (std + 1e-8)
    observation = replace(policy.preprocess(batch), state=state)
    elements = policy.model.loss(observation, target, **draws(policy))
    for place, number in enumerate(batch["embodiment_id"].tolist()):
        dim, steps = list(WIDTHS.values())[number][1], 2 if place == 1 else 4
        torch.testing.assert_close(losses[place], elements[place, :steps, :dim].mean())
    torch.testing.assert_close(policy.loss(batch, **draws(policy)), losses.mean())
    element = policy.loss(batch, reduction="element", **draws(policy))
    assert element[0, :, 6:].eq(0).all()
    assert element[1, 2:].eq(0).all()
    assert element[2].ne(0).all()


def test_a_mixed_batch_is_each_robots_own_batch(sets, trained):
    """What stands behind a robot's own numbers is never read."""
    policy, batch = PI0Policy.from_pretrained(trained), mixed_batch(sets)
    together = policy.loss(batch, reduction="sample", **draws(policy))
    garbage = mixed_batch(sets)
    garbage[STATE][0, 4:], garbage[ACTION][3, :, 6:] = 77.0, -99.0
    assert torch.equal(policy.loss(garbage, reduction="sample", **draws(policy)), together)
    for number, tag in enumerate(WIDTHS):
        policy.use_embodiments(policy.embodiments.known(), tag)
        rows = batch["embodiment_id"] == number
        own = {k: v[rows] for k, v in batch.items() if k not in ("task", "embodiment_id")}
        own[STATE], own[ACTION] = own[STATE][:, : WIDTHS[tag][0]], own[ACTION][..., : WIDTHS[tag][1]]
        its = {k: v[:, rows] for k, v in draws(policy).items()}
        losses = policy.loss({**own, "task": "do thing 0"}, reduction="sample", **its)
        torch.testing.assert_close(losses, together[rows])


def test_a_camera_that_a_robot_lacks_is_masked_and_its_state_in_pi05s_prompt_is_its_own():
    """A mixed batch gives what each robot's batch gives, also where observations differ in kind."""
    keys = (CAMERA, "observation.images.wrist")
    features = {"image_keys": keys, "state_normalization": "quantiles", "action_normalization": "quantiles"}
    policy = toy_policy(features, pi05=True, tokenizer_max_length=60)
    numbers = {key: compute_statistics(torch.randn(30, 2) * 3) for key in (STATE, ACTION)}
    narrow = replace(policy.features, state_dim=2, action_dim=2, absent_cameras=keys[1:])
    own = Embodiment(policy.features, policy.statistics)
    policy.use_embodiments({"wide": own, "narrow": Embodiment(narrow, numbers)})
    g = torch.Generator().manual_seed(1)
    batch = {
        **{key: torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=g) for key in keys},
        f"{keys[1]}_is_pad": torch.tensor([False, True]),
        STATE: torch.randn(2, 4, generator=g),
        ACTION: torch.randn(2, 8, 3, generator=g),
        "task": ["press the button"] * 2,
        "embodiment_id": torch.tensor([0, 1]),
    }
    noise, time = torch.randn(1, 2, 8, 8, generator=g), torch.rand(1, 2, generator=g)
    together = policy.loss(batch, reduction="sample", noise=noise, time=time)
    policy.use_embodiments(policy.embodiments.known(), "narrow")
    alone = {CAMERA: batch[CAMERA][1:], STATE: batch[STATE][1:, :2], ACTION: batch[ACTION][1:, :, :2]}
    loss = policy.loss({**alone, "task": batch["task"][1:]}, noise=noise[:, 1:], time=time[:, 1:])
    torch.testing.assert_close(together[1], loss)
    policy.use_embodiments(policy.embodiments.known(), "wide")
    del batch["embodiment_id"]
    torch.testing.assert_close(policy.loss(batch, noise=noise, time=time, reduction="sample")[0], together[0])


# Acting -----------------------------------------------------------------------------------------------------


def observation(tag: str, **more) -> dict:
    g = np.random.default_rng(0)
    state = g.normal(CENTRES[tag], 1.5, WIDTHS[tag][0]).astype(np.float32)
    return {CAMERA: g.integers(0, 256, (SIDE, SIDE, 3), np.uint8), STATE: state, "task": "do thing 0", **more}


@pytest.mark.parametrize("tag", WIDTHS)
def test_what_is_served_is_in_the_units_of_its_robot(trained, tag):
    policy = PI0Policy.from_pretrained(trained, embodiment=tag)
    server = PolicyServer(policy, seed=0)
    (answer,) = server.infer([server.request(pack(observation(tag)), server.new_generator())])
    assert isinstance(answer, dict)
    numbers = json.loads((trained / "embodiment_statistics.json").read_text())[tag]
    mean, std = (np.array(numbers[STATE][name]) for name in ("mean", "std"))
    seen = observation(tag)
    batch = {CAMERA: seen[CAMERA][None], STATE: torch.from_numpy(seen[STATE])[None], "task": ["do thing 0"]}
    model_state = policy.preprocess(batch)
    expected = np.pad((seen[STATE] - mean) / std, (0, 7 - len(mean)))
    np.testing.assert_allclose(model_state.state[0], expected, rtol=1e-5, atol=1e-6)
    chunk = policy.model.sample(model_state, generator=torch.Generator().manual_seed(0))[0]
    mean, std = (np.array(numbers[ACTION][name]) for name in ("mean", "std"))
    np.testing.assert_allclose(answer["actions"], chunk[:, : len(mean)] * std + mean, rtol=1e-4, atol=1e-4)
    assert server.metadata["embodiment"] == tag
    assert (server.metadata["state_dim"], server.metadata["action_dim"]) == WIDTHS[tag]


def two_in_metaworld(directory: Path) -> Path:
    """A policy of a robot that Meta-World has and of another, and beside it the first one alone."""
    policy = metaworld_policy()
    policy.save_pretrained(directory / "alone")
    mine = Embodiment(policy.features, policy.statistics)
    numbers = {key: compute_statistics(torch.randn(30, 3) + 90) for key in (STATE, ACTION)}
    other = Embodiment(replace(policy.features, state_dim=3, action_dim=3), numbers)
    policy.use_embodiments({"other": other, "sawyer": mine})
    policy.save_pretrained(directory / "both")
    return directory


def test_pi0_eval_acts_as_the_robot_that_is_asked_for(tmp_path, capsys):
    two_in_metaworld(tmp_path)

    def main(policy: str, *more: str) -> int:
        fixed = ["--env", "metaworld", "--num-workers", "0", "--device", "cpu", "--episodes", "1"]
        fixed += ["--tasks", next(iter(METAWORLD)), "--env-option", "max_episode_length=16"]
        fixed += ["--env-option", "num_parallel_envs=1"]
        where = ["--output", str(tmp_path / "out"), "--recording-root", str(tmp_path / f"{policy}-rollouts")]
        return evaluate.main(["--policy", str(tmp_path / policy), *fixed, *where, *more])

    assert main("alone") == 0
    assert main("both", "--embodiment", "sawyer") == 0
    done = [
        pq.read_table(tmp_path / f"{policy}-rollouts/data").column(ACTION) for policy in ("alone", "both")
    ]
    assert done[0].to_pylist() == done[1].to_pylist()
    capsys.readouterr()
    assert main("both") == 2
    expected = "--embodiment: expected one of other, sawyer, as which the policy is to act, found none"
    assert expected in last_line(capsys)
    assert main("both", "--embodiment", "other") == 2
    assert "observation.state: expected float32 (3,), found float32 (4,)" in last_line(capsys)
    assert main("alone", "--embodiment", "sawyer") == 2
    assert "expected none, because the policy's robot has no tag, found 'sawyer'" in last_line(capsys)


def test_ript_and_recap_say_before_any_work_that_a_robot_is_to_be_chosen(tmp_path):
    path = two_in_metaworld(tmp_path) / "both"
    changes = [f"policy_path={path}", f"output_dir={tmp_path}"]
    ript = load_config_from_yaml("pi0/ript/config/debug_train_pi0.yaml", changes)
    recap = load_config_from_yaml("configs/demo.yaml", changes, schema=RecapConfig)
    for config, check in ((ript, validate_config), (recap, validate_recap)):
        with pytest.raises(ConfigError, match=r"policy\.embodiment: expected one of other, sawyer, as which"):
            check(config)
        config.policy.embodiment = "arm"
        with pytest.raises(
            ConfigError, match=r"policy\.embodiment: expected one of other, sawyer, found 'arm'"
        ):
            check(config)


def test_the_doctor_finds_the_robot_that_fits(tmp_path):
    path = str(two_in_metaworld(tmp_path) / "both")
    request = Request(env="metaworld", checkpoint=path)
    assert trial_checks.checkpoint(request)[0].level == "ok"
    policy = PI0Policy.from_pretrained(path, embodiment="other")
    policy.save_pretrained(path)
    with pytest.raises(ValueError, match=r"observation.state: expected float32 \(3,\), found float32 \(4,\)"):
        trial_checks.checkpoint(request)


def test_what_was_trained_as_one_robot_goes_on_as_that_one(tmp_path):
    """RIPT and RECAP write policies that are loaded again without being told."""
    environment = get_environment("metaworld", task_names=list(METAWORLD))
    path = str(two_in_metaworld(tmp_path) / "both")
    policy = starting_policy(path, environment, tmp_path, 0, embodiment="sawyer")
    policy.save_pretrained(tmp_path / "again")
    again = PI0Policy.from_pretrained(tmp_path / "again")
    assert (again.embodiments.tags, again.embodiments.chosen) == (("other", "sawyer"), "sawyer")
    assert again.features.state_dim == 4


# lerobot ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [None, "second"])
def test_lerobot_sees_the_chosen_robot_or_else_the_first(tmp_path, chosen, monkeypatch):
    policy = tiny_policy()
    first = Embodiment(policy.features, policy.statistics)
    moved = {key: {**values, "mean": values["mean"] + 3} for key, values in policy.statistics.items()}
    policy.use_embodiments({"first": first, "second": replace(first, statistics=moved)}, chosen)
    policy.save_pretrained(tmp_path)
    actions = lerobot_actions_of(tmp_path, False, raw_batch(), raw_noise(), monkeypatch)
    expected = {}
    for tag in ("first", "second"):
        policy.use_embodiments(policy.embodiments.known(), tag)
        expected[tag] = policy.sample_actions(raw_batch(), noise=raw_noise())
    seen = expected.pop(chosen or "first")
    torch.testing.assert_close(actions, seen, rtol=1e-5, atol=1e-5 * actions.abs().max().item())
    assert not torch.allclose(actions, expected.popitem()[1], rtol=0.1, atol=0.1)
    assert PI0Policy.from_pretrained(tmp_path).embodiments.chosen == chosen


# What is refused --------------------------------------------------------------------------------------------


def last_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "\n".join(lines)
    return lines[-1]


def test_a_policy_of_several_robots_is_told_as_which_to_act(sets, trained, tmp_path, capsys):
    policy = PI0Policy.from_pretrained(trained)
    both = "expected one of arm, hand, as which the policy is to act, found none"
    seen = {k: v for k, v in mixed_batch(sets).items() if k not in (ACTION, "action_is_pad", "embodiment_id")}
    for act in (policy.sample_actions, policy.select_action, policy.preprocess):
        with pytest.raises(EmbodimentError, match=both):
            act(seen)
    with pytest.raises(EmbodimentError, match="expected one of arm, hand, found 'foot'"):
        PI0Policy.from_pretrained(trained, embodiment="foot")
    policy.use_embodiments(policy.embodiments.known(), "hand")
    with pytest.raises(ValueError, match="embodiment_id: a policy acts as one robot at a time"):
        policy.sample_actions({**seen, "embodiment_id": torch.zeros(4).long()})
    with pytest.raises(ValueError, match="embodiment_id: expected 4 ids below 2"):
        policy.loss(mixed_batch(sets, embodiment_id=torch.tensor([0, 1, 2, 0])))
    for command, more in ((serve, ()), (export, ("--output", str(tmp_path / "exported")))):
        assert command.main([str(trained), "--device", "cpu", *more]) == 2
        assert f"--embodiment: {both}" in last_line(capsys)
        assert command.main([str(trained), "--embodiment", "foot", *more]) == 2
        assert "--embodiment: expected one of arm, hand, found 'foot'" in last_line(capsys)


def test_export_describes_the_robot_that_is_asked_for(trained):
    policy = PI0Policy.from_pretrained(trained, embodiment="hand")
    described = exporting._description(policy, exporting.example_inputs(policy, 1, 1), 5)
    assert (described["embodiment"], described["features"]["action_dim"]) == ("hand", 8)
    assert described["statistics"] == json.loads((trained / "embodiment_statistics.json").read_text())["hand"]


@pytest.mark.parametrize(
    ("datasets", "changes", "message"),
    [
        (["arm", "hand"], {}, r"expected the same widths of state .*\(4, 6\).*\(7, 8\).*an embodiment_tag"),
        ([("arm", "x"), ("hand", "x")], {}, "embodiment_tag x: expected the same widths of state and action"),
        ([("arm", "x"), ("named", "x"), ("other", "x")], {}, "embodiment_tag x: expected the same names"),
        ([("arm", "arm"), "hand"], {}, "embodiment_tag: expected in all data sets or in none, found"),
        ([("arm", "foot")], {"policy_path": "TRAINED"}, "embodiment_tag: expected .*arm, hand, .*found foot"),
        (["arm"], {"policy_path": "TRAINED"}, "embodiment_tag: expected one of arm, hand, .*found none"),
        ([("arm", "arm")], {"policy": {"embodiment": "hand"}}, "embodiment: expected one of arm, found"),
        ([("arm", "hand")], {"policy_path": "TRAINED"}, "expected the policy's 7 numbers, found 4"),
        (
            [("arm", "arm"), ("hand", "hand")],
            {"policy": {"type": "value"}},
            "embodiment_tag: a value function is of one robot, found arm, hand",
        ),
        (
            [("arm", "arm"), ("hand", "hand")],
            {"policy_path": "TRAINED", "policy": {"statistics_path": "TRAINED/processor/statistics.json"}},
            "policy.statistics_path: is of one robot, and the data sets are of arm, hand",
        ),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_a_robot_are_refused_in_one_line(
    sets, trained, tmp_path, capsys, datasets, changes, message
):
    roots = dict(sets)
    for name in ("named", "other"):
        if any(x[0] == name for x in datasets):
            roots[name] = robot_set(tmp_path / name, "arm", names=[f"{name}_{i}" for i in range(4)])
    entries = [entry(roots[x]) if isinstance(x, str) else entry(roots[x[0]], x[1]) for x in datasets]
    text = json.dumps(changes).replace("TRAINED", str(trained))
    try:
        code = train.main([settings_file(tmp_path / "run", entries, **json.loads(text))])
    except SystemExit as left:
        code = left.code
    assert code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error


def test_advantages_are_of_the_robot_that_the_value_function_read(sets, trained, tmp_path, capsys):
    """A value function that reads a policy's prefix keeps as which robot; another one is refused."""
    changes = {"policy": {"type": "value", "reads": str(trained), "width": 16}, "steps": 1}
    assert train.main([settings_file(tmp_path, [entry(sets["hand"], "hand")], **changes)]) == 0
    copied = shutil.copytree(sets["hand"], tmp_path / "labelled")
    fixed = ["--value", str(tmp_path / "run"), "--device", "cpu", "--policy", str(trained), str(copied)]
    assert advantage.main([*fixed, "--embodiment", "arm"]) == 2
    assert "expected the robot that it was trained for (hand), found a policy that acts as arm" in last_line(
        capsys
    )
    assert advantage.main(fixed) == 2
    assert "pass --embodiment hand" in last_line(capsys)
    (tmp_path / "mixture.json").write_text(json.dumps({"datasets": two_robots(sets)}))
    assert advantage.main([*fixed, "--dataset_mixture", str(tmp_path / "mixture.json")]) == 2
    assert "embodiment_tag: a value function is of one robot, found arm, hand" in last_line(capsys)
    assert advantage.main([*fixed, "--embodiment", "hand"]) == 0
    assert (copied / "meta/advantages.json").exists()


def test_files_that_contradict_each_other_are_refused(trained, tmp_path):
    copied = shutil.copytree(trained, tmp_path / "copied", symlinks=True)
    (copied / "embodiment_id.json").write_text('{"arm": 0, "foot": 1}')
    with pytest.raises(ValueError, match="expected ids from 0 on and statistics of arm, hand, found"):
        PI0Policy.from_pretrained(copied)
    (copied / "embodiment_id.json").unlink()
    with pytest.raises(ValueError, match=r"expected embodiment_id\.json of arm, hand"):
        PI0Policy.from_pretrained(copied)


def test_weights_of_a_robots_sets_are_those_of_the_mixture(sets):
    datasets = [
        DatasetSettings(root=str(sets[name]), embodiment_tag=tag)
        for name, tag in (("arm", "arm"), ("hand", "hand"), ("arm-2", "arm"))
    ]
    mixture = MixtureSettings(datasets=datasets, weights=[3.0, 5.0, 1.0], val_split_ratio=0.0)
    mean = DataSummary(mixture).robots["arm"].statistics()[STATE]["mean"]
    first, second = (opened(sets[name]).states.mean(0) for name in ("arm", "arm-2"))
    np.testing.assert_allclose(mean, 0.75 * first + 0.25 * second, rtol=1e-5)
