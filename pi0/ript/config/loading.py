"""From a YAML file, a profile and the command line to one checked `TrainConfig`, and back to YAML."""

import os
import socket
import tempfile
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pi0.registry import did_you_mean
from pi0.ript.config.schema import ConfigError, TrainConfig
from pi0.ript.config.translation import translate
from pi0.ript.config.typed_values import MisfitError, fitted
from pi0.ript.config.yaml_files import CONFIGS, parse_yaml, read_yaml
from pi0.ript.files import flatten

PROFILES = CONFIGS / "profiles"


def load_config_from_yaml[C](
    path: str | Path,
    overrides: Iterable[str] = (),
    profile: str | None = None,
    schema: type[C] = TrainConfig,
    without_effect: Mapping[str, Sequence[str]] | None = None,
) -> C:
    """Return the configuration of a YAML file; keys that it does not name have their defaults.

    A profile's keys replace the file's, and overrides replace both. `${key}` stands for another key's value.
    Notices about keys of earlier versions are printed.

    Args:
        path: The file.
        overrides: "algo.lr=2e-5", "task.task_names=[3,4]", "eval.first_state=null", ...
        profile: Name of one of the files in `PROFILES`.
        schema: A dataclass whose fields have defaults; sections are dataclasses too.
        without_effect: More keys that are accepted with a notice, by the reason.

    Raises:
        ConfigError: Something cannot be read, is unknown or has the wrong type; tells all of it.
    """
    layers = [(str(path), flatten(read_yaml(Path(path))))]
    if profile is not None:
        layers.append((f"profile {profile}", flatten(read_yaml(_profile_path(profile)))))
    layers.append(("command line", parse_overrides(overrides)))
    return load_config(layers, schema, without_effect)


def use_local_storage(directory: str | None) -> None:
    """Make a directory the place of temporary files, for this process and those that it starts.

    Raises:
        ConfigError: It cannot be written.
    """
    if directory is None:
        return
    place = Path(directory).expanduser().absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ConfigError(
            f"storage.local: expected a directory that {socket.gethostname()} can write, found {place} "
            f"({error}); it is a directory of each machine's own, and only for temporary files"
        ) from error
    os.environ["TMPDIR"] = tempfile.tempdir = str(place)


def load_config[C](
    layers: Sequence[tuple[str, Mapping[str, Any]]],
    schema: type[C],
    without_effect: Mapping[str, Sequence[str]] | None = None,
) -> C:
    """Return the configuration that several layers of dotted keys ask for, each with its name for messages.

    The keys of a layer replace those before it. More in `load_config_from_yaml`.
    """
    config, known = OmegaConf.structured(schema), default_values(schema)
    types = dict(_types(schema))
    problems: list[str] = []
    notices: list[str] = []
    for source, settings in layers:
        translation = translate(_with_tables(settings, types), known, without_effect or {})
        wrong = translation.problems
        for key, value in translation.values.items():
            wrong += _set(config, key, value, types[key])
        problems += [f"{source}: {problem}" for problem in wrong]
        notices += [f"{source}: {notice}" for notice in translation.notices]
    problems += [problem for key in known for problem in _unresolved(config, key)]
    if problems:
        raise ConfigError(*problems)
    for notice in notices:
        say(notice)
    OmegaConf.resolve(config)
    try:
        made: Any = OmegaConf.to_object(config)
    except ValueError as error:  # of a section's own checks
        raise ConfigError(f"{layers[0][0]}: {error}") from error
    return made


def save_config(config: Any, run_dir: str | Path) -> Path:
    """Write the configuration in effect and return the file; loading it gives an equal configuration."""
    file = Path(run_dir) / "experiment_cfg" / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
    return file


def default_values(schema: Any = TrainConfig) -> dict[str, Any]:
    """Return every dotted key with its default."""
    tables = {key: {} for key, hint in _types(schema) if typing.get_origin(hint) is dict}
    return {**flatten(asdict(schema())), **tables}


def present_settings(saved: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """Return the settings of an earlier run, sections in sections, under the keys that they have now."""
    present: dict[str, Any] = {}
    for key, value in translate(flatten(saved), default_values(schema)).values.items():
        *sections, name = key.split(".")
        place = present
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return present


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Return dotted keys and values of "key=value" texts; values are YAML; the last of a key counts."""
    flat: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        key = key.lstrip("-").strip().replace("-", "_")
        if not equals or not key:
            raise ConfigError(f"expected key=value, such as algo.lr=2e-5, found {text!r}")
        flat |= flatten({key: parse_yaml(value, f"command line, {key}")})
    return flat


def say_device(device: str, backend: str = "auto") -> None:
    """Print which device a run computes on and why, and what becomes of nccl where there is no GPU."""
    from pi0.ript.starting_policy import require_device  # torch comes with it

    chosen = require_device(device)
    why = "as the settings ask"
    if device == "auto":
        why = "auto: " + ("a GPU is there" if chosen.type == "cuda" else "no CUDA device was found")
    say(f"device: {chosen} ({why})")
    if backend == "nccl" and chosen.type != "cuda":
        say("distributed.backend: gloo in place of nccl, which is for GPUs")


def mixed_precision(dtype: str | None) -> str | None:
    """Return policy.dtype, which accelerate's mixed_precision decides where the settings do not.

    Raises:
        ConfigError: accelerate asks for another type, or for one that is not offered.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked == "no":
        return dtype
    if asked != "bf16":
        raise ConfigError(f"accelerate's mixed_precision: expected no or bf16, found {asked}")
    if dtype == "float32":
        raise ConfigError(
            "accelerate's mixed_precision=bf16 contradicts policy.dtype=float32; keep one of them"
        )
    say("policy.dtype: bfloat16, as accelerate's mixed_precision asks")
    return "bfloat16"


def engine(strategy: str) -> str:
    """Return distributed.strategy, which is "fsdp" where accelerate's configuration asks for FSDP.

    Raises:
        ConfigError: accelerate asks for DeepSpeed, which is not offered.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
        raise ConfigError(
            "accelerate: expected plain processes (MULTI_GPU, MULTI_CPU) or FSDP, found DEEPSPEED"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true" and strategy != "fsdp":
        say("distributed.strategy: fsdp, as accelerate's configuration asks")
        return "fsdp"
    return strategy


def say(line: str) -> None:
    """Print a line, once where torchrun started several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(line)  # noqa: T201


def _profile_path(name: str) -> Path:
    try:
        return (
            PROFILES
            / f"{did_you_mean('profile', name, (file.stem for file in PROFILES.glob('*.yaml')))}.yaml"
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _types(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint in typing.get_type_hints(schema).items():
        if is_dataclass(hint):
            yield from _types(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def _with_tables(settings: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys and values in which a table, whose names are not settings, is one value again."""
    whole = dict(settings)
    for key in (key for key, hint in types.items() if typing.get_origin(hint) is dict):
        names = [name for name in whole if name.startswith(f"{key}.")]
        if names:
            whole[key] = {name.removeprefix(f"{key}."): whole.pop(name) for name in names}
    return whole


def _set(config: DictConfig, key: str, value: Any, hint: Any) -> list[str]:
    """Set a key; return what is wrong with the value."""
    entry = typing.get_args(hint)[0] if typing.get_origin(hint) is list else None
    if is_dataclass(entry) and (problems := _entry_problems(key, value, [f.name for f in fields(entry)])):
        return problems
    try:
        OmegaConf.update(config, key, fitted(value, hint, key))
    except MisfitError as error:
        return [str(error)]
    except OmegaConfBaseException as error:
        return [f"{key}: {str(error).splitlines()[0]}"]
    return []


def _entry_problems(key: str, entries: Any, known: Sequence[str]) -> list[str]:
    """Return what is wrong with the keys of a list of sections."""
    problems = []
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        for name in entry if isinstance(entry, Mapping) else ():
            try:
                did_you_mean("key", name, known)
            except ValueError as error:
                problems.append(f"{key}[{number}]: {error}")
    return problems


def _unresolved(config: DictConfig, key: str) -> list[str]:
    """Return what is wrong with the references to other keys in a value."""
    try:
        value = OmegaConf.select(config, key)
        if isinstance(value, ListConfig):
            OmegaConf.to_container(value, resolve=True)
    except OmegaConfBaseException as error:
        written = flatten(typing.cast(dict[str, Any], OmegaConf.to_container(config)))[key]
        return [f"{key}: {written!r} stands for nothing that fits: {str(error).splitlines()[0]}"]
    return []
