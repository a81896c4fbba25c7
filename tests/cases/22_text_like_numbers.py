"""Text that YAML 1.1 takes for a number is changed: exp_name=012 writes into the run called 10 (hydra#2599)."""

from case_sets import WORK, check, end, make, train

from pi0.ript.config import load_config_from_yaml
from pi0.ript.config.schema import TrainConfig
from pi0.ript.supervised import read_settings

root = make()


def settings(*more):
    return read_settings(
        "configs/sft_pi0_config.json", [f"dataset_mixture.datasets=[{{root: {root}}}]", *more]
    )


def expect(text, get, *override):
    try:
        found = get(settings(*override))
    except ValueError as error:
        check("quote" in str(error), f"{override[0]} is refused: {error}")
        return
    check(found == text, f"{override[0]}: {found!r}")


for text in ("2026_11_28", "1e5", "012", "1:30", "0x10", "0b11", "1_000", "12e4567", ".5"):
    expect(text, lambda s: s.exp_name, f"exp_name={text}")
expect(
    "12e4567",
    lambda s: s.dataset_mixture.datasets[0].revision,
    "dataset_mixture.datasets=[{root: x, revision: 12e4567}]",
)
expect("012", lambda s: s.dataset_mixture.datasets[0].root, "dataset_mixture.datasets=[{root: 012}]")
expect("1e5", lambda s: s.output_dir, "output_dir=1e5")
expect("1e5", lambda s: s.policy_path, "policy.pretrained_path=1e5")
expect("1:30", lambda s: s.task.task_names[0], "env.task=1:30")
file = WORK / "c.yaml"
file.write_text(f"exp_name: 2026_11_28\ndataset_mixture: {{datasets: [{{root: {root}}}]}}\n")
try:
    found = read_settings(str(file)).exp_name
    check(found == "2026_11_28", f"YAML file, exp_name: 2026_11_28: {found!r}")
except ValueError as error:
    check("quote" in str(error), f"YAML file: {error}")
file.write_text("exp_name: 012\n")
try:
    found = load_config_from_yaml(file, schema=TrainConfig).exp_name
    check(found == "012", f"a RIPT run, exp_name: 012: {found!r}")
except ValueError as error:
    check("quote" in str(error), f"RIPT: {error}")
assert train(root, "o", "exp_name=10")[0] == 0
found = train(root, "o", "exp_name=012")
names = sorted(p.name for p in (WORK / "o").iterdir())
check(names == ["012", "10"] or found[0] == 2, f"runs 10 and 012 are two directories: {names}")

end()
