"""From the keys of a file to today's: which are renamed, without effect, contradictory or unknown."""

import difflib
import textwrap
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from pi0.ript.config.aliases import EARLIER, OTHERS, WITHOUT_EFFECT, Alias
from pi0.ript.environments import LIBERO_SUITES

_BEFORE_TODAYS = "algo.demo_batch_size"
"""Earlier files have it beside `algo.data_batch_size`, which was the older name of it."""
_ROW: dict[str, Any] = {"initial_indent": "  ", "subsequent_indent": "    ", "break_on_hyphens": False}


@dataclass
class Translation:
    """The settings under today's keys, what to tell the user, and what is wrong."""

    values: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def translate(
    given: Mapping[str, Any],
    known: Mapping[str, Any],
    without_effect: Mapping[str, Sequence[str]] | None = None,
) -> Translation:
    """Return dotted keys and values under today's keys.

    Args:
        given: What a file says, by its own keys.
        known: Today's keys with their defaults.
        without_effect: More keys that are accepted with a notice, by the reason.
    """
    result, aliases = Translation(), _aliases(known)
    written = _rewritten(given, result.notices)
    meanings: dict[str, dict[str, Any]] = defaultdict(dict)  # today's key -> values, by the keys that mean it
    ignored: dict[str, dict[str, None]] = defaultdict(dict)  # reason -> keys, or the pattern that they match
    unused = {**WITHOUT_EFFECT, **(without_effect or {})}
    order = {key: rank for rank, key in enumerate(dict.fromkeys([_BEFORE_TODAYS, *known, *aliases]))}
    for old in sorted(written, key=lambda key: order.get(key, len(order))):
        value = written[old]
        if old in known:
            meanings[old][old] = value
        elif old in aliases:
            new, value, problem = _meaning(old, value, aliases[old])
            result.problems += problem
            if new and (value is not None or known[new] is None):
                meanings[new][old] = value
        elif reason := _reason(old, unused):
            why, pattern = reason
            ignored[why][pattern if "*" in pattern else old] = None
        else:
            result.problems += unknown_key(old, value, known, aliases)
    # A switch that is on says less than a value.
    must_agree = {
        old for old, alias in OTHERS.items() if aliases.get(old) is alias and given.get(old) not in (True,)
    }
    for new, values in meanings.items():
        _decide(result, new, values, must_agree)
    renamed = [f"{old} -> {new}" for new, values in meanings.items() for old in values if old != new]
    if renamed:
        result.notices.append(f"keys under their present names: {', '.join(renamed)}")
    if ignored:
        rows = (textwrap.fill(f"{_grouped(keys)}: {why}", 110, **_ROW) for why, keys in ignored.items())
        result.notices.append("\n".join(["keys without effect:", *sorted(rows)]))
    return result


def _reason(old: str, unused: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """Return why a key, or what it is called now, has no effect, and the entry; None: it is unknown."""
    names = {old, OTHERS[old].key if old in OTHERS else old}
    entries = ((why, pattern) for why, patterns in unused.items() for pattern in patterns)
    return next((entry for entry in entries if any(fnmatch(name, entry[1]) for name in names)), None)


def _grouped(keys: Iterable[str]) -> str:
    """Return keys in one line, those of a section as `section.{a, b}`."""
    sections: dict[str, list[str]] = defaultdict(list)
    for key in sorted(keys):
        section, dot, name = key.rpartition(".")
        sections[section + dot].append(name)
    parts = (names[0] if len(names) == 1 else f"{{{', '.join(names)}}}" for names in sections.values())
    return ", ".join(section + part for section, part in zip(sections, parts, strict=True))


def _aliases(known: Collection[str]) -> dict[str, Alias]:
    """Return the aliases of these keys."""
    tables = [*EARLIER.items(), *OTHERS.items()]
    return {old: alias for old, alias in tables if alias.key in ("", *known) and old not in known}


def _rewritten(given: Mapping[str, Any], notices: list[str]) -> dict[str, Any]:
    """Return the keys, with those that no single key stands for in today's form; tell what is left out."""
    written = dict(given)
    if written.get("env.task") in LIBERO_SUITES:  # OpenTau takes a suite here, too
        written.pop("env.type", None)
        written["env.suite"] = written.pop("env.task")
    # GR00T changes colours alone.
    if jitter := {key: written.pop(key) for key in given if key.startswith("color_jitter_params.")}:
        colours = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "rotation_degrees"), 0.0)
        named = {key.rpartition(".")[2]: value for key, value in jitter.items()}
        changes = {"enable": True, "crop_scale": 1.0, **colours, **named}
        written |= {f"dataset_mixture.augmentation.{key}": value for key, value in changes.items()}
    if any(written.get(f"{section}.use_so100_processing") for section in ("dataset", "data_processing")):
        names = ("windowing_mode", "max_windows_per_episode", "window_stride")
        written = {key: value for key, value in written.items() if key.rpartition(".")[2] not in names}
        written["dataset.window_stride"] = 1
        notices.append("use_so100_processing: a window at every step; other keys of windows say nothing then")
    for section in ("dataset", "data_processing"):
        if written.get(f"{section}.windowing_mode") == "last":
            written.pop(f"{section}.max_windows_per_episode", None)
    size = written.get("resolution")
    if isinstance(size, list) and len(set(size)) == 1:
        written["dataset_mixture.image_size"] = written.pop("resolution")[0]
    datasets, weights = written.get("dataset_mixture.datasets"), written.get("dataset_mixture.weights")
    if isinstance(datasets, list) and any(isinstance(x, Mapping) and "vqa" in x for x in datasets):
        kept = [number for number, entry in enumerate(datasets) if "vqa" not in entry]
        notices.append("dataset_mixture.datasets: sets with 'vqa' are left out; questions are not trained on")
        written["dataset_mixture.datasets"] = [datasets[number] for number in kept]
        if isinstance(weights, list) and len(weights) == len(datasets):
            written["dataset_mixture.weights"] = [weights[number] for number in kept]
    return written


def _meaning(old: str, value: Any, alias: Alias) -> tuple[str, Any, list[str]]:
    """Return today's key with its value, and what is wrong; no key if the old one asks for nothing."""
    if alias.is_listed and value is not None:
        return alias.key, [value if alias.entry is None else {alias.entry: value}], []
    if alias.values is not None and isinstance(value, Hashable) and value in alias.values:
        return alias.key, alias.values[value], []
    if alias.remedy is None:
        return alias.key, value, []
    is_wrong = value not in (None, False)
    return "", None, [f"{old}: found {value!r}; {alias.remedy}"] * is_wrong


def _decide(result: Translation, new: str, values: Mapping[str, Any], must_agree: Collection[str]) -> None:
    """Set a key of today's that several keys of a file may mean; an empty value gives way to a synonym."""
    winner = next((old for old, value in values.items() if value is not None), next(iter(values)))
    result.values[new] = values[winner]
    for old, value in values.items():
        if value is None or value == values[winner]:
            continue
        if old in must_agree:
            result.problems.append(f"{old}={value} contradicts {winner}={values[winner]}; keep one of them")
        else:
            result.notices.append(f"{old}={value} gives way to {winner}={values[winner]}")


def unknown_key(key: str, value: Any, known: Iterable[str], aliases: Iterable[str]) -> list[str]:
    """Return what is wrong with a key that is not known; an empty section is fine."""
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        expected = f"{key}: expected a section with keys such as {inside[0].removeprefix(f'{key}.')}"
        return [] if value is None else [f"{expected}, found {value!r}"]
    outside = next((name for name in known if key.startswith(f"{name}.")), None)
    if outside:
        found = f"the section {{{key.removeprefix(outside)[1:]}: ...}}"
        return [f"{outside}: expected a value, found {found}; a text with braces needs quotes"]
    section, _, last = key.rpartition(".")
    near = [name for name in known if name.rpartition(".")[2] == last]
    near += difflib.get_close_matches(key, known, n=3, cutoff=0.8)
    near = near or difflib.get_close_matches(key, aliases, n=3, cutoff=0.8)
    siblings = [name.removeprefix(f"{section}.") for name in known if name.rpartition(".")[0] == section]
    hints = [f"did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?"] if near else []
    if section and siblings and not any(name.startswith(f"{section}.") for name in near):
        hints.append(f"{section} has: {', '.join(siblings)}")
    return [f"unknown key {key!r}; {' '.join(hints) or '--help lists the keys'}"]
