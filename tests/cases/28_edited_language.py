"""LIBERO: the instruction is that of the file name even where the BDDL's (:language) was edited (LIBERO-PRO#27). The stock suites are as libero.benchmark says."""

import shutil
import sys

from case_sets import WORK, check, end

from pi0.ript.envs import libero_files

found = [name for suite in libero_files.SUITES for name in libero_files.task_names(suite)]
package = WORK / "site/libero"
source = libero_files.package_root()
(package / "libero").mkdir(parents=True)
(package / "__init__.py").write_text("")
for name in ("benchmark", "bddl_files", "init_files"):
    shutil.copytree(source / name, package / "libero" / name)
(package / "libero/__init__.py").write_text("")
task = "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
file = package / "libero/bddl_files/libero_object" / f"{task}.bddl"
text = file.read_text()
import re

file.write_text(
    re.sub(r"\(:language [^)]*\)", "(:language grasp the soup can and drop it into the box)", text)
)
sys.path.insert(0, str(WORK / "site"))
libero_files.package_root.cache_clear()
libero_files.task_names.cache_clear()
import importlib

importlib.invalidate_caches()
assert libero_files.bddl_file("libero_object", task) == file, "the edited package is the one in use"
from pi0.ript.environments import get_environment

(told,) = [
    t.instruction
    for t in get_environment("libero_object", task_names=[task]).suite().tasks()
    if t.name == task
]
check(
    told == "grasp the soup can and drop it into the box",
    f"the policy is told {told!r}; the file that defines the task says 'grasp the soup can and drop it into the box'",
)

end()
