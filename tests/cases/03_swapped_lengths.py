"""Wrong episode lengths whose sum is right move boundaries silently, and with them success labels (lerobot#4143)."""

from case_sets import WORK, WRONG, check, column, end, is_refused, make, rewrite, short, train_value, viz

from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings

root = make()


def swap(table):  # episodes 0 (a failure, 3 frames) and 1 (a success, 4 frames)
    lengths = table["length"].to_pylist()
    lengths[0], lengths[1] = lengths[1], lengths[0]
    return column(table, "length", lengths)


rewrite(root, "meta/episodes", swap)
try:
    loaded = open_set(DatasetSettings(root=str(root)))
    lengths = loaded.lengths.tolist()
    check(lengths == [3, 4, 5, 6], f"lengths by the frames [3, 4, 5, 6], found {lengths}")
    found = [labels.success for labels in loaded.labels]
    check(
        found == [False, True, True, False],
        f"success: by the frames [False, True, True, False], found {found}",
    )
    is_mended = not WRONG  # lengths may also be taken from the frames
except ValueError as error:
    check("episode" in str(error), f"refused: {error}")
    is_mended = False
for name, found in {
    "pi0-dataset-viz": viz(root, "--output", WORK / "page.html"),
    "pi0-train, value": train_value(root, "value"),
}.items():
    is_right = (is_mended and found[0] == 0) or is_refused(found, "length") or is_refused(found, "episode")
    check(is_right, f"{name} refuses the set: {short(found)}")

end()
