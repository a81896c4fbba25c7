"""Python imports this at its start where the directory is on PYTHONPATH: it notes and refuses heavy imports.

A note is a line of the file that HEAVY_IMPORTS names: the package, and where in this project it was asked
for. To ask whether a package is there is no import, and is answered.
"""

import os
import sys
import traceback
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder

HEAVY = os.environ.get("HEAVY_PACKAGES", "torch lerobot transformers mujoco").split()


class Refusal(MetaPathFinder, Loader):
    def find_spec(self, fullname, path=None, target=None):
        spec = PathFinder.find_spec(fullname, path) if fullname in HEAVY else None
        if spec is not None:
            spec.loader = self
        return spec

    def create_module(self, spec):
        places = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack() if "/pi0/" in f.filename]
        with open(os.environ["HEAVY_IMPORTS"], "a") as notes:  # noqa: PTH123 - pathlib is not here yet
            notes.write(f"{spec.name} by {' < '.join(reversed(places))}\n")
        raise ImportError(f"{spec.name} is not to be imported here")

    def exec_module(self, module):
        raise AssertionError("never reached")


sys.meta_path.insert(0, Refusal())
