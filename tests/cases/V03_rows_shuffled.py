"""Rows of an episode out of order: action chunks run backwards, though frame_index and timestamp say so."""

from case_sets import check, end, make, np, pa, rewrite

from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings

root = make()


def backwards(table):
    order = np.arange(len(table))
    rows = np.flatnonzero(np.array(table["episode_index"].to_pylist()) == 3)
    order[rows] = rows[::-1]
    return table.take(pa.array(order))


def actions():
    return open_set(DatasetSettings(root=str(root))).actions[-6:]


true = actions()
rewrite(root, "data", backwards)
try:
    found = actions()
except ValueError as error:
    check("frame_index" in str(error) or "order" in str(error), f"refused: {error}")
else:
    is_backwards = np.array_equal(found, true[::-1])
    check(np.array_equal(found, true), f"actions in the order of frame_index (backwards: {is_backwards})")

end()
