"""An episode's videos/*/file_index names its neighbour's file: the neighbour's images are trained on (lerobot#2401)."""

from dataclasses import replace

from case_sets import INFO, check, column, end, is_refused, make, np, rewrite, short, train

from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings

CAMERA = "observation.images.front"


def images():
    return open_set(DatasetSettings(root=str(root))).images[CAMERA][:].astype(int)


root = make(length=lambda number: 6, size=64, info=replace(INFO, storage="video"))
true = images()
rewrite(
    root, "meta/episodes", lambda table: column(table, f"videos/{CAMERA}/file_index", [0, 0, 2, 3])
)  # episode 1 is in file 1
try:
    seen = images()
    is_own, is_another = np.array_equal(seen[6:12], true[6:12]), np.array_equal(seen[6:12], true[0:6])
    check(is_own, f"episode 1 shows its own images, not episode 0's (equal to episode 0's: {is_another})")
except ValueError as error:
    check("video" in str(error), f"refused: {error}")
for gib in (0, 1):
    found = train(root, f"out{gib}", f"dataset_mixture.in_memory_gib={gib}")
    is_right = is_refused(found, "video") or is_refused(found, "file_index")
    check(is_right, f"pi0-train, in_memory_gib={gib}, refuses: {short(found)}")

end()
