"""What is chosen by name, and how packages outside this one add theirs; policy configurations are here.

A package registers what it adds when it is imported, and `load_plugins` imports it.
"""

import difflib
import importlib
from collections.abc import Iterable

from pi0.config import VARIANTS, Pi0Config, pi05_config
from pi0.errors import UnusableError


def did_you_mean(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` when it is known; else raise ValueError with the nearest known names."""
    names = sorted(known)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else f"known: {', '.join(names)}"
    raise UnusableError(f"unknown {kind} {name!r}; {hint}")


def add[T](kind: str, known: dict[str, T], name: str, entry: T) -> None:
    """Add an entry to `known`; a name that is taken is a ValueError."""
    if name in known:
        raise ValueError(f"{kind} {name!r} is registered already: {known[name]}")
    known[name] = entry


_CONFIGS: dict[str, Pi0Config] = {
    "pi0": Pi0Config(),
    "pi05": pi05_config(),
    "pi0_lora": Pi0Config(vlm=VARIANTS["gemma_2b_lora"], expert=VARIANTS["gemma_300m_lora"]),
}


def register_config(name: str, config: Pi0Config) -> None:
    """Make `get_config(name)` return a configuration.

    A subclass of Pi0Config says with `create`, `inputs_spec`, `weight_loader` and `freeze_filter` what it
    needs; checkpoints of its policies name the configuration, so that they load with the same class.
    """
    add("policy configuration", _CONFIGS, name, config)


def get_config(name: str) -> Pi0Config:
    """Return a configuration by name; an unknown one is a ValueError that suggests known ones."""
    return _CONFIGS[did_you_mean("policy configuration", name, _CONFIGS)]


def available() -> tuple[str, ...]:
    """Return the names of all configurations."""
    return tuple(_CONFIGS)


def class_name(config: Pi0Config) -> str | None:
    """Return the first name under which the configuration's class is registered; None: Pi0Config itself.

    A subclass that nobody registered is a ValueError: its checkpoints could not be loaded.
    """
    if type(config) is Pi0Config:
        return None
    name = next((name for name, known in _CONFIGS.items() if type(known) is type(config)), None)
    if name is None:
        raise ValueError(
            f"{type(config).__name__} is not registered, so its checkpoints could not be loaded; "
            "call pi0.registry.register_config(name, config) where the class is defined"
        )
    return name


def load_plugins(packages: Iterable[str]) -> None:
    """Import packages that register configurations, environments or algorithms; a second time does nothing.

    Raises:
        ValueError: One is not installed, imports what is not installed, or registers a name that is taken.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            is_it = error.name is not None and f"{package}.".startswith(f"{error.name}.")
            what = "is not installed" if is_it else f"needs {error.name}"
            raise UnusableError(
                f"plugins: {package!r} {what}; install it (pip install), or put the directory that holds it "
                "on PYTHONPATH"
            ) from error
        except (ValueError, TypeError) as error:
            raise UnusableError(f"plugins: {package!r} failed to register what it adds: {error}") from error
