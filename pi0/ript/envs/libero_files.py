"""LIBERO's files: tasks, benchmark initial states, assets. Loads neither robosuite nor torch."""

import importlib.util
import os
import pickle
import re
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import yaml
from jaxtyping import Float64

from pi0.errors import UnusableError
from pi0.ript.envs.initial_state import InitialStateError


class MissingAssetsError(FileNotFoundError):
    """LIBERO's assets are not there; the message says how they are fetched."""

    explains_itself = True


SUITES: dict[str, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Deadline in steps by suite: a little more than the longest demonstration, as openpi has it."""

FETCH_ASSETS = "hf download lerobot/libero-assets --repo-type dataset --local-dir ~/.cache/libero/assets"

_WORDS_OF_NAMES = {
    "pick the ": "pick up the ",
    "akita ": "",
    "cookies ": "cookie ",
    "top layer of the wooden cabinet": "top drawer of the wooden cabinet",
    "middle layer of the drawer": "middle drawer of the cabinet",
    "top layer of the drawer": "top drawer",
    "on the top of the drawer": "on top of the cabinet",
    "cream cheese on the bowl": "cream cheese in the bowl",
    "put the black bowl in the middle": "put the middle black bowl",
    "stack the black bowl in the middle on the black bowl at the front": "stack the middle black bowl on the "
    "back black bowl",
    "right compartment of the caddy": "right of the caddy",
}
"""Where LIBERO's files say the same as the names of their tasks in other words: what the names say."""
_ASSET_FOLDERS = (
    "articulated_objects",
    "stable_hope_objects",
    "stable_scanned_objects",
    "turbosquid_objects",
)
_SCENES = {
    "libero_coffee_table_manipulation": "libero_coffee_table_base_style",
    "libero_floor_manipulation": "libero_floor_base_style",
    "libero_kitchen_tabletop_manipulation": "libero_kitchen_tabletop_base_style",
    "libero_living_room_tabletop_manipulation": "libero_living_room_tabletop_base_style",
    "libero_study_tabletop_manipulation": "libero_study_base_style",
    "libero_tabletop_manipulation": "libero_tabletop_base_style",
}
_PARTS_OF_SCENES = {
    "coffee_table",
    "floor",
    "kitchen_table",
    "living_room_table",
    "main_table",
    "study_table",
    "table",
}


@cache
def package_root() -> Path:
    """Return the folder of hf-libero's `libero.libero`, which is not imported."""
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("LIBERO is not installed; install it with: pip install hf-libero")
    return Path(next(iter(spec.submodule_search_locations))) / "libero"


@cache
def task_names(suite: str) -> tuple[str, ...]:
    """Return a suite's task names in the benchmark's order."""
    path = package_root() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("libero_suite_task_map", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(module.libero_task_map[suite])


def instruction(suite: str, task: str) -> str:
    """Return what the robot is told: the task's name, as in the benchmark, or what its edited file says."""
    name = re.sub(r"^[A-Z_]+SCENE\d+_", "", task).replace("_", " ")
    file = bddl_file(suite, task)
    written = re.search(r"\(:language\s+([^)]*)\)", file.read_text()) if file.is_file() else None
    text = name if written is None else " ".join(written[1].split())
    return name if _in_words_of_names(text) == _in_words_of_names(name) else text


def _in_words_of_names(text: str) -> str:
    text = text.lower()
    for words, named in _WORDS_OF_NAMES.items():
        text = text.replace(words, named)
    return text


def bddl_file(suite: str, task: str) -> Path:
    """Return the file that defines the task's scene and goal."""
    return package_root() / "bddl_files" / suite / f"{task}.bddl"


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and nothing else."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return a global that arrays are made of, refuse every other."""
        if (module_name, global_name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"unexpected {module_name}.{global_name}")
        return super().find_class(module_name.replace("numpy.core", "numpy._core"), global_name)


def benchmark_states(suite: str, task: str) -> Float64[np.ndarray, "k n"]:
    """Return the task's evaluation states, each time, qpos, qvel, from its .pruned_init file."""
    return read_pruned_init(package_root() / "init_files" / suite / f"{task}.pruned_init")


def read_pruned_init(path: Path) -> Float64[np.ndarray, "k n"]:
    """Return the array of a .pruned_init file, which is a torch archive of one pickled array."""
    try:
        with ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as file:
                states = np.asarray(_ArrayUnpickler(file).load(), dtype=np.float64)
        if states.ndim != 2:
            raise ValueError(f"expected a matrix, found shape {states.shape}")
    except (BadZipFile, StopIteration, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise InitialStateError(
            f"{path} is no file of LIBERO initial states ({error}); reinstall hf-libero"
        ) from error
    return states


def assets_folder() -> Path:
    """Return the folder of LIBERO's assets.

    The first that exists of: $LIBERO_ASSETS, "assets" of hf-libero's config.yaml, the `assets`
    folder in the package, ~/.cache/libero/assets (where hf-libero downloads to).

    Raises:
        MissingAssetsError: There is none; the message has the command that fetches them.
    """
    named = os.environ.get("LIBERO_ASSETS")
    if named:
        if not _has_assets(Path(named)):
            raise MissingAssetsError(
                f"LIBERO_ASSETS={named} does not hold LIBERO's assets (folders "
                f"{', '.join(_ASSET_FOLDERS)}); correct it, or fetch them with: {FETCH_ASSETS}"
            )
        return Path(named).resolve()
    places = [package_root() / "assets", Path.home() / ".cache" / "libero" / "assets"]
    configured = _configured_assets()
    places[:0] = [configured] if configured else []
    for place in places:
        if _has_assets(place):
            return place.resolve()
    raise MissingAssetsError(
        f"LIBERO's assets are in none of {', '.join(map(str, places))}. Fetch them (about 0.5 GB) "
        f"with: {FETCH_ASSETS}; or name their folder in the environment variable LIBERO_ASSETS"
    )


def naming(assets: Path) -> str:
    """Return which file names a folder of assets, in brackets, for a message; nothing if none does."""
    configured = _configured_assets()
    is_named = configured is not None and configured.resolve() == assets
    return f" (as {_config_folder() / 'config.yaml'} says)" if is_named else ""


def _configured_assets() -> Path | None:
    """Return the folder of assets that LIBERO's configuration names, which another install may have made."""
    file = _config_folder() / "config.yaml"
    if not file.is_file():
        return None
    try:
        entries = yaml.safe_load(file.read_text()) or {}
        named = entries.get("assets")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise UnusableError(
            f"{file}: expected LIBERO's paths as YAML, found something else "
            f"({' '.join(str(error).split())[:100]}); remove it, or name another folder in LIBERO_CONFIG_PATH"
        ) from error
    return None if named is None else Path(str(named)).expanduser()


def _has_assets(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in _ASSET_FOLDERS)


def missing_assets(assets: Path, suite: str, task: str) -> list[Path]:
    """Return the files that the task needs and the folder lacks."""
    text = bddl_file(suite, task).read_text()
    problem = re.search(r"\(problem\s+(\w+)\)", text)
    assert problem is not None
    sources = [assets / "scenes" / f"{_SCENES[problem[1].lower()]}.xml"]
    blocks = re.findall(r"\(:(?:objects|fixtures)(.*?)\)", text, re.DOTALL)
    categories = set(re.findall(r"-\s*(\w+)", " ".join(blocks))) - _PARTS_OF_SCENES
    for category in sorted(categories):
        places = [f"{folder}/{category}/{category}.xml" for folder in _ASSET_FOLDERS]
        places.append(f"articulated_objects/{category}.xml")
        sources.append(next((assets / p for p in places if (assets / p).is_file()), assets / places[0]))
    return [file for source in sources for file in _missing_of(source)]


@cache
def _missing_of(source: Path) -> tuple[Path, ...]:
    """Return the missing files among an XML file and what it refers to."""
    if not source.is_file():
        return (source,)
    without_comments = re.sub(r"<!--.*?-->", "", source.read_text(), flags=re.DOTALL)
    files = re.findall(r"""\bfile\s*=\s*["']([^"']+)["']""", without_comments)
    return tuple(path for name in files if not (path := source.parent / name).is_file())


def _config_folder() -> Path:
    return Path(os.environ.get("LIBERO_CONFIG_PATH", Path.home() / ".libero"))


def prepare_import(assets: Path) -> None:
    """Make `import libero.libero` ask no questions, download nothing and use these assets.

    Without a config.yaml the import would wait for keyboard input, so one is written to the user's
    cache folder when there is none.
    """
    if not (_config_folder() / "config.yaml").is_file():
        cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        folder = cache_home / "pi0-ript" / "libero"
        folder.mkdir(parents=True, exist_ok=True)
        root = package_root()
        entries = {
            "benchmark_root": str(root),
            "bddl_files": str(root / "bddl_files"),
            "init_states": str(root / "init_files"),
            "datasets": str(root.parent / "datasets"),
            "assets": str(root / "assets"),
        }
        partial = folder / f"config.{os.getpid()}.partial"
        partial.write_text(yaml.safe_dump(entries))
        partial.replace(folder / "config.yaml")
        os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    import libero.libero

    libero.libero._assets_path_cache = str(assets)
