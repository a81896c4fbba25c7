"""Numbers that no range check sees: a threshold of NaN makes every frame negative, C_neg=-inf trains on NaN, and others (strands-labs/robots#1936)."""

from case_sets import WORK, advantage, check, end, is_refused, make, short, train, train_value

root = make()
assert train_value(root, "value")[0] == 0
assert advantage(WORK / "value/run", root)[0] == 0
for value in (".nan",):
    found = train(root, "u" + value[1:], "policy.advantage=use", f"policy.advantage_threshold={value}")
    line = [x for x in found[1].splitlines() if x.startswith("indicator")]
    check(
        is_refused(found, "advantage_threshold"), f"policy.advantage_threshold={value}: {found[0]!r} {line}"
    )
for key, value in (("C_neg", "-.inf"), ("reward_normalizer", ".inf")):
    found = train_value(root, "v" + key, f"policy.reward_config.{key}={value}")
    line = [x for x in found[1].splitlines() if x.startswith("step 1")]
    check(is_refused(found, key), f"policy.reward_config.{key}={value}: {found[0]!r} {line}")
for key, value in (
    ("dataset_mixture.image_size", "0"),
    ("dataset_mixture.image_size", "-3"),
    ("memory_limit_gb", "-1"),
    ("memory_limit_gb", ".nan"),
    ("dataset_mixture.in_memory_gib", ".nan"),
    ("dataset_mixture.val_split_seed", "-5"),
):
    found = train(
        root, "w", f"{key}={value}", "val_freq=1", "dataset_mixture.val_split_ratio=0.3", "--overwrite"
    )
    check(is_refused(found, key.split(".")[-1]), f"{key}={value}: {short(found)}")
found = train(root, "x", "scheduler.decay_lr=1", "scheduler.num_warmup_steps=0", "steps=4", "save_freq=4")
rates = [
    x.split("learning_rate ")[1].split()[0]
    for x in found[1].splitlines()
    if "learning_rate " in x and x.startswith("step")
]
print(
    f"note   scheduler.decay_lr=1 above optimizer.lr=0.001 is taken or not: {short(found)}; the rates are {rates}"
)  # a matter of taste, not counted

end()
