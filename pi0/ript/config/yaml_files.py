"""Reads YAML as it is meant: 1e-4 is a number, a date is text, a key that is there twice is an error.

Numbers, yes and no keep how they were typed, for settings that are text.
"""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from pi0.ript.config.schema import ConfigError
from pi0.ript.config.typed_values import WrittenBool, WrittenFloat, WrittenInt

CONFIGS = Path(__file__).parent
"""The configurations that come with the package."""

_REFERENCE = "$ref"


class _Loader(yaml.SafeLoader):
    pass


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    lines: dict[str, int] = {}
    loader.flatten_mapping(node)
    for key_node, _ in node.value:
        key, line = _key(loader, key_node), key_node.start_mark.line + 1
        if key in lines:
            where = f"{key_node.start_mark.name}: the key {key!r}"
            raise ConfigError(f"{where} is there twice, in lines {lines[key]} and {line}; remove one")
        lines[key] = line
    return {_key(loader, key): loader.construct_object(value, deep=True) for key, value in node.value}


def _key(loader: _Loader, node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else str(loader.construct_object(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _keeping_text(kind: type[WrittenInt | WrittenFloat | WrittenBool], name: str) -> None:
    """Let plain numbers or words of a kind remember their text; one in quotes is text anyway."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        value = kind(getattr(yaml.SafeLoader, f"construct_yaml_{name}")(loader, node))
        value.written = node.value
        return value

    _Loader.add_constructor(f"tag:yaml.org,2002:{name}", construct)


_keeping_text(WrittenInt, "int")
_keeping_text(WrittenFloat, "float")
_keeping_text(WrittenBool, "bool")


def parse_yaml(text: str, source: str) -> Any:
    """Return what a YAML text says; `source` names it in errors.

    Raises:
        ConfigError: It is not YAML, or a key is there twice; the message names the line.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(
            f"{source}, line {line}: character {chr(error.character)!r} is not allowed in YAML"
        ) from error
    loader.name = source
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{source}, line {line}: this is not YAML: {error.problem}") from error
    finally:
        loader.dispose()


def read_yaml(path: Path, key: str = "config_path", including: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the sections and keys of a YAML file, includes resolved; an empty file has none.

    `key` is what names the file, for errors; `including` are the files that it is included from.

    Raises:
        ConfigError: There is no such file, or it is no mapping of keys.
    """
    path = path.expanduser()
    if not path.is_file():
        raise ConfigError(f"{key}: {str(path)!r} {_nothing_there(path)}")
    values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: expected keys and values, found a {type(values).__name__}")
    return include(values or {}, path, including)


def include(values: Any, path: Path, including: tuple[Path, ...] = ()) -> Any:
    """Return what a file at `path` says with each section `{"$ref": FILE, ...}` replaced by that file's keys.

    Other keys of such a section go over the file's: sections are merged, anything else replaced. FILE is
    relative to the file that includes it, as in OpenTau.

    Raises:
        ConfigError: A file is not there, or includes itself.
    """
    if isinstance(values, list):
        return [include(value, path, including) for value in values]
    if not isinstance(values, dict):
        return values
    own = {key: include(value, path, including) for key, value in values.items() if key != _REFERENCE}
    if _REFERENCE not in values:
        return own
    name, chain = values[_REFERENCE], (*including, path.resolve())
    if not isinstance(name, str):
        raise ConfigError(f"{path}: {_REFERENCE}: expected the name of a file, found {name!r}")
    target = path.expanduser().parent / Path(name).expanduser()
    if target.resolve() in chain:
        names = " -> ".join(one.name for one in (*chain, target))
        raise ConfigError(f"{path}: {_REFERENCE}: {name} includes itself ({names}); remove one of these")
    return _merged(read_yaml(target, f"{path}: {_REFERENCE}", chain), own)


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **both}


def _nothing_there(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    kinds = ("*.json",) if path.suffix == ".json" else ("*.y*ml", "*.json")
    nearby = sorted(file for kind in kinds for file in folder.glob(kind)) if folder.is_dir() else []
    if not nearby:
        nearby = sorted(Path("configs").glob("*.json") if path.suffix == ".json" else CONFIGS.glob("*.yaml"))
    names = {file.stem: _short(file) for file in nearby}
    close = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.6)
    hint = (
        f"did you mean {names[close[0]]}?" if close else f"there are: {', '.join(names.values()) or 'none'}"
    )
    what = "is a directory" if path.is_dir() else f"does not exist (looked in {Path.cwd()})"
    return f"{what}; {hint}"


def _short(file: Path) -> str:
    absolute = file.resolve()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)
