"""A frame rate of 29.97 is cut to 29 by the loader of values, advantages and pages (hflow#458, lerobot#2001)."""

import json

from case_sets import (
    WORK,
    advantage,
    check,
    column,
    end,
    make,
    np,
    pq,
    rewrite,
    set_info,
    short,
    train,
    train_value,
    viz,
)

from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings

root = make()
set_info(root, fps=29.97)


def at_the_rate(table):
    times = (np.array(table["frame_index"].to_pylist()) / 29.97).astype(np.float32)
    return column(table, "timestamp", times)


rewrite(root, "data", at_the_rate)
try:
    rate = open_set(DatasetSettings(root=str(root))).fps
    check(rate == 29.97, f"the reader says 29.97: {rate}")
except ValueError as error:
    check("fps" in str(error), f"refused: {error}")
    end()
assert train_value(make("whole"), "value")[0] == 0
assert advantage(WORK / "value/run", root)[0] == 0
stored = []
for file in root.glob("data/*/*.parquet"):
    columns = (pq.read_table(file)[name].to_pylist() for name in ("episode_index", "timestamp"))
    stored += zip(*columns, strict=True)
path = root / "meta/advantages.json"
keys = [(int(key.split(",")[0]), float(key.split(",")[1])) for key in json.loads(path.read_text())]
off = max(abs(own[1] - key[1]) for own, key in zip(stored, keys, strict=True))
check(off < 1e-4, f"keys of meta/advantages.json are the stored timestamps (largest difference {off:.4f} s)")
# A file with the true timestamps, as another program writes it
(root / "meta/advantages_lineage.json").unlink()
path.write_text(json.dumps({f"{episode},{float(np.float32(time))}": "0.1" for episode, time in stored}))
found = train(root, "use", "policy.advantage=use", "policy.advantage_threshold=0")
check(found[0] == 0, f"advantages by the true timestamps are taken: {short(found)}")
set_info(root, fps=0.5)
path.unlink()
found = viz(root, "--output", WORK / "page.html")
check(found[0] in (0, 2), f"pi0-dataset-viz at 0.5 fps: {short(found)}")

end()
