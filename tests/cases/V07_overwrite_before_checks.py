"""--overwrite with a data set that is not there moves the finished run aside and leaves nothing in its place."""

from case_sets import WORK, check, end, make, train

root = make()
assert train(root, "o")[0] == 0
found = train(WORK / "nowhere", "o", "--overwrite")
is_here = (WORK / "o/run/model.safetensors").exists()
there = sorted(path.name for path in (WORK / "o").iterdir())
check(
    found[0] == 2 and is_here,
    f"refused ({found[0]!r}), and the finished run stays where it is: {is_here}; there are {there}",
)

end()
