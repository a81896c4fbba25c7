"""on in a data set's advantage is refused as 'True' without the hint to quote it; --overwrite=false without any (lerobot#1039, robots#3355)."""

from case_sets import check, end, make, run, short

from pi0.ript.supervised import parse_settings

root = make()


def parsed(entry, *more):
    found = {}

    def main(arguments):
        found["settings"] = parse_settings(arguments)
        return 0

    return run(
        main,
        "--config_path=configs/sft_pi0_config.json",
        f"dataset_mixture.datasets=[{entry}]",
        "device=cpu",
        "dataset_mixture.weights=null",
        *more,
    ), found.get("settings")


outcome, settings = parsed(f"{{root: {root}, advantage: on}}")
check(
    (settings is not None and settings.dataset_mixture.datasets[0].advantage == "on") or "quot" in outcome[1],
    f"datasets=[{{advantage: on}}] as policy.advantage=on: {short(outcome)}",
)
outcome, settings = parsed(f"{{root: {root}}}", "policy.advantage=on")
check(settings is not None and settings.policy.advantage == "on", "policy.advantage=on")
for words in (["--overwrite=false"], ["--overwrite", "false"]):
    outcome, settings = parsed(f"{{root: {root}}}", *words)
    check(
        (settings is not None and settings.overwrite is False)
        or "overwrite=false" in outcome[1].replace("--overwrite=false", ""),
        f"{' '.join(words)}: its value, or how to write it: {short(outcome)}",
    )
outcome, settings = parsed(f"{{root: {root}}}", "policy.use_awr=no")
check(settings is not None and settings.policy.use_awr is False, "policy.use_awr=no")

end()
