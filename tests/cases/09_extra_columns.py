"""Columns that lerobot cannot cast (a list of texts, a nested one, one that info.json lacks) end pi0-train and pi0-stats with a traceback (OpenTau#416)."""

import json
import logging

from case_sets import WORK, check, end, is_refused, make, pa, rewrite, set_info, short, stats, train

logging.disable(logging.CRITICAL)


def with_column(key, values):
    return lambda table: table.append_column(key, values(len(table)))


def steps(count):
    return pa.array([f"step {i}" for i in range(count)])


def texts(count):
    return pa.array([["a", "b"]] * count, pa.list_(pa.string()))


def nested(count):
    return pa.array([{"x": i, "y": {"z": "q"}} for i in range(count)])


cases = {
    "a column that info.json lacks": ("subtask", steps, None),
    "a list of texts": ("notes", texts, {"dtype": "string", "shape": [2], "names": None}),
    "a nested column": ("nested", nested, {"dtype": "string", "shape": [1], "names": None}),
}
for number, (name, (key, values, feature)) in enumerate(cases.items()):
    root = make(f"d{number}")
    rewrite(root, "data", with_column(key, values))
    if feature:
        features = json.loads((root / "meta/info.json").read_text())["features"]
        set_info(root, features=features | {key: feature})
    outcomes = {
        "pi0-train": train(root, f"o{number}"),
        "pi0-stats": stats(root, "--output", WORK / "s.json"),
    }
    for what, found in outcomes.items():
        check(found[0] == 0 or is_refused(found, key), f"{name}, {what}: {short(found)}")

end()
