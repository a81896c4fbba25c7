"""From the keys of a file to today's: which are renamed, without effect, contradictory or unknown."""

import difflib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pi0.ript.config.aliases import EARLIER, NO_EFFECT, OTHERS, WITHOUT_EFFECT
from pi0.ript.environments import LIBERO_SUITES

_ALIASES = {**EARLIER, **OTHERS}
_BEFORE_TODAYS = "algo.demo_batch_size"
"""Earlier files have it beside `algo.data_batch_size`, which was the older name of it."""


@dataclass
class Translation:
    """The settings under today's keys, what to tell the user, and what is wrong."""

    values: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def translate(
    given: Mapping[str, Any], known: Mapping[str, Any], without_effect: Mapping[str, str] | None = None
) -> Translation:
    """Return dotted keys and values under today's keys.

    Args:
        given: What a file says, by its own keys.
        known: Today's keys with their defaults.
        without_effect: More keys that are accepted with a notice, each with the reason.
    """
    result, written = Translation(), _with_suite(given)
    meanings: dict[str, dict[str, Any]] = defaultdict(dict)  # today's key -> values, by the keys that mean it
    ignored, reasons = [], {**NO_EFFECT, **(without_effect or {})}
    order = {key: rank for rank, key in enumerate(dict.fromkeys([_BEFORE_TODAYS, *known, *_ALIASES]))}
    for old in sorted(written, key=lambda key: order.get(key, len(order))):
        if old in known:
            meanings[old][old] = written[old]
        elif old in _ALIASES and _ALIASES[old].key in ("", *known):
            _add_meaning(result, meanings, old, written[old], known)
        elif todays_key(old) in reasons:
            ignored.append(f"{old} ({reasons[todays_key(old)]})")
        elif WITHOUT_EFFECT.fullmatch(old):
            ignored.append(old)
        else:
            result.problems += unknown_key(old, written[old], known)
    for new, values in meanings.items():
        _decide(result, new, values, written)
    renamed = [f"{old} -> {new}" for new, values in meanings.items() for old in values if old != new]
    if renamed:
        result.notices.append(f"keys under their present names: {', '.join(renamed)}")
    if ignored:
        result.notices.append(f"keys without effect: {', '.join(sorted(ignored))}")
    return result


def _add_meaning(
    result: Translation,
    meanings: Mapping[str, dict[str, Any]],
    old: str,
    value: Any,
    known: Mapping[str, Any],
) -> None:
    new = _ALIASES[old].key
    try:
        meant = _meaning(old, value)
    except ValueError as error:
        result.problems.append(str(error))
        return
    if new and (meant is not None or known[new] is None):
        meanings[new][old] = meant


def todays_key(old: str) -> str:
    """Return what a key is called now."""
    return _ALIASES[old].key if old in _ALIASES else old


def _with_suite(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys, with `env.task` as `env.suite` where it names one of LIBERO's: OpenTau takes both."""
    written = dict(given)
    if written.get("env.task") in LIBERO_SUITES:
        written.pop("env.type", None)
        written["env.suite"] = written.pop("env.task")
    return written


def _meaning(old: str, value: Any) -> Any:
    """Return the value under today's key, None if the old key asks for nothing; ValueError if it is wrong."""
    alias = _ALIASES[old]
    if alias.is_listed and value is not None:
        return [value]
    if alias.values is None:
        return value
    if isinstance(value, Hashable) and value in alias.values:
        return alias.values[value]
    if alias.remedy is None:
        return value
    if value in (None, False):
        return None
    raise ValueError(f"{old}: found {value!r}; {alias.remedy}")


def _decide(result: Translation, new: str, values: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    """Set a key of today's that several keys of a file may mean; an empty value gives way to a synonym."""
    winner = next((old for old, value in values.items() if value is not None), next(iter(values)))
    result.values[new] = values[winner]
    for old, value in values.items():
        if value is None or value == values[winner]:
            continue
        if old in OTHERS and written[old] not in (True,):  # a switch that is on says less
            result.problems.append(f"{old}={value} contradicts {winner}={values[winner]}; keep one of them")
        else:
            result.notices.append(f"{old}={value} gives way to {winner}={values[winner]}")


def unknown_key(key: str, value: Any, known: Iterable[str]) -> list[str]:
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
    near = near or difflib.get_close_matches(
        key, (old for old in _ALIASES if _ALIASES[old].key in known), n=3, cutoff=0.8
    )
    siblings = [name.removeprefix(f"{section}.") for name in known if name.rpartition(".")[0] == section]
    hints = [f"did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?"] if near else []
    if section and siblings and not any(name.startswith(f"{section}.") for name in near):
        hints.append(f"{section} has: {', '.join(siblings)}")
    return [f"unknown key {key!r}; {' '.join(hints) or '--help lists the keys'}"]
