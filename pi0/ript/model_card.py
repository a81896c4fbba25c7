"""The model card of a policy, made from what its run left behind; what is not known is said to be missing."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pi0 import PI0Policy
from pi0.ript.files import FORMAT, write_json
from pi0.ript.guidance import guidance_text, recorded_guidance
from pi0.ript.markdown import code_block, escaped, markdown_table
from pi0.ript.origin.base_card import BaseCard, read_base_card
from pi0.ript.origin.finding import hub_name
from pi0.ript.origin.record import Origin, shown_path
from pi0.ript.policy_settings import TOY
from pi0.ript.success_table import success_legend, success_rows

CARD, EVALUATION, VIDEOS = "README.md", "evaluation.json", "videos"
MOST_VIDEO_BYTES = 10_000_000
_PRIVATE = ("output_dir", "warm_start_dir", "logging", "storage", "resume")
"""Sections and keys of settings that say where files lie and who is told what."""


def write_card(directory: Path, policy: PI0Policy, origin: Origin, name: str) -> None:
    """Write README.md, evaluation.json and videos, as far as the origin has them, beside a policy's files.

    Args:
        directory: Where the policy was saved.
        policy: The policy.
        origin: What is known of it.
        name: What readers will call it: a hub repository or a directory; of an absolute path only the end.
    """
    name = shown_path(name)
    base = read_base_card(origin.base)
    videos = _copy_videos(origin, directory / VIDEOS)
    if origin.own is not None:
        own = origin.evaluations[origin.own]
        write_json(directory / EVALUATION, {"format": FORMAT, **own.to_dict()})
    sections = [
        ("", _introduction(policy, origin)),
        ("Use", _use(policy, directory, name)),
        ("The policy", markdown_table([["", ""], *_facts(policy).items()])),
        ("Lineage", _bullets(origin.lineage)),
        ("Data", _data(origin)),
        ("Success", _success(origin, name)),
        ("Videos", "\n".join(f"* [{escaped(label)}]({VIDEOS}/{file})" for label, file in videos.items())),
        ("Settings", _settings(origin.settings)),
        ("Licence", _licence(origin, base)),
        ("Not known", _bullets((*origin.missing, *_missing(origin, base, videos)))),
    ]
    body = "\n\n".join(f"## {heading}\n\n{text}" if heading else text for heading, text in sections if text)
    title = escaped(name.rstrip("/").rpartition("/")[2])
    front = _front_matter(policy, origin, base, name).to_yaml()
    ModelCard(f"---\n{front}\n---\n\n# {title}\n\n{body}\n").save(directory / CARD)


def _introduction(policy: PI0Policy, origin: Origin) -> str:
    return (
        f"A {_kind(policy)} policy (vision-language-action, flow matching) in lerobot's format, written by "
        f"pi0-ript {version('pi0-ript')}. {escaped(origin.method)}"
    )


def _kind(policy: PI0Policy) -> str:
    return "pi05" if policy.config.pi05 else "pi0"


def _use(policy: PI0Policy, directory: Path, name: str) -> str:
    kind = _kind(policy)
    lines = [
        f"from lerobot.policies.{kind}.modeling_{kind} import {kind.upper()}Policy",
        f"policy = {kind.upper()}Policy.from_pretrained({json.dumps(name)})",
        "",
        "from pi0 import PI0Policy  # or by pi0-ript",
        f"policy = PI0Policy.from_pretrained({json.dumps(name)})",
    ]
    notes = {
        "embedding": "The policy knows an indicator of the advantage, an embedding in pi0_extra.safetensors; "
        "lerobot does not read it, and acts without.",
        "text": "The policy knows an indicator of the advantage, a part of the prompt that pi0-ript adds; "
        "lerobot does not, and acts without.",
    }
    guidance = recorded_guidance(directory)
    acts = "" if guidance is None else f" It acts with guidance {escaped(guidance_text(guidance))}."
    return (
        code_block("\n".join(lines), "python")
        + f"\n\n{notes.get(policy.config.indicator, '')}{acts}".rstrip()
    )


def _facts(policy: PI0Policy) -> dict[str, Any]:
    config, features = policy.config, policy.features
    return {
        "parameters": f"{sum(parameter.numel() for parameter in policy.model.parameters()):,}",
        "cameras": ", ".join(features.present_cameras),
        "state, action": f"{features.state_dim}, {features.action_dim} numbers",
        "chunk": f"{config.chunk_size} actions, {config.n_action_steps} of them executed",
        "sampler": f"{config.num_inference_steps} steps",
        "computes in": config.dtype,
        "indicator of the advantage": config.indicator,
        **({"robot": policy.embodiments.chosen} if policy.embodiments.tags else {}),
    }


def _bullets(lines: tuple[str, ...]) -> str:
    return "\n".join(f"* {escaped(line)}" for line in lines)


def _data(origin: Origin) -> str:
    tables = {caption: markdown_table(rows) for caption, rows in origin.data_tables.items()}
    parts = [f"{escaped(caption)}:\n\n{text}" for caption, text in tables.items() if text]
    return "\n\n".join(filter(None, [_bullets(origin.data), *parts]))


def _success(origin: Origin, name: str) -> str:
    if not origin.evaluations:
        return ""
    parts = [
        markdown_table(success_rows(origin.evaluations)),
        f"{escaped(success_legend(origin.evaluations))}. Intervals of rates are Wilson's.",
    ]
    if origin.own is not None:
        parts.append(f"This policy: {escaped(origin.own)}; every episode is in [{EVALUATION}]({EVALUATION}).")
    parts += [_bullets(tuple(f"{label}: {meaning}" for label, meaning in origin.meanings.items()))]
    if origin.conditions is not None:
        how = replace(origin.conditions, options=_readable(origin.conditions.options))
        commands = "\n".join(how.commands(name))
        whole = ", with whole paths for those that begin with .../" if ".../" in commands else ""
        parts += [
            f"States: {escaped(how.sentence())}",
            f"The same evaluation again (pi0-ript installed{whole}):",
            code_block(commands, "bash"),
        ]
    return "\n\n".join(filter(None, parts))


def _copy_videos(origin: Origin, directory: Path) -> dict[str, str]:
    """Copy the videos of the first evaluation and of the policy's own; return their names by label."""
    first = next(iter(origin.evaluations), None)
    copied = {}
    for label in dict.fromkeys([first, origin.own]):
        video = origin.videos.get(label or "")
        if label is None or video is None or video.stat().st_size > MOST_VIDEO_BYTES:
            continue
        directory.mkdir(exist_ok=True)
        file = f"{len(copied)}-{''.join(x if x.isascii() and x.isalnum() else '-' for x in label)}.mp4"
        shutil.copyfile(video, directory / file)
        copied[label] = file
    return copied


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    shown = {key: _readable(value) for key, value in settings.items() if key not in _PRIVATE}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    left_out = ", ".join(f"`{name}`" for name in _PRIVATE)
    return (
        f"Left out: {left_out}; of absolute paths all but the end.\n\n"
        f"<details><summary>all others</summary>\n\n{code_block(text, 'yaml')}\n\n</details>"
    )


def _readable(value: Any) -> Any:
    """Return settings with absolute paths shortened."""
    if isinstance(value, Mapping):
        return {str(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return shown_path(value) if isinstance(value, str) else value


def _licence(origin: Origin, base: BaseCard) -> str:
    if base.licence is None:
        return ""
    more = [x for x in (base.name, base.link) if x]
    return (
        f"The base, {escaped(shown_path(str(origin.base)))}, says of itself: "
        f"{escaped(', '.join([base.licence, *more]))}. Its terms hold for what is made from it."
    )


def _missing(origin: Origin, base: BaseCard, videos: Mapping[str, str]) -> list[str]:
    missing = [] if origin.own is not None else ["the success of this policy: no evaluation of it was found"]
    if origin.base == TOY:
        missing.append(
            "a licence: the policy was trained from random weights, and its owner has to choose one"
        )
    elif base.licence is None:
        which = "which is not known" if origin.base is None else shown_path(origin.base)
        missing.append(f"the licence of the base ({which}): no card that says it could be read")
    if origin.own is not None and origin.conditions is None:
        missing.append("the command of the evaluation: its settings are of an earlier version")
    large = [label for label in origin.videos if label == origin.own and label not in videos]
    if large:
        missing.append(f"the video: it has more than {MOST_VIDEO_BYTES // 10**6} MB")
    elif not videos:
        missing.append("videos: the run left none")
    return missing


def _front_matter(policy: PI0Policy, origin: Origin, base: BaseCard, name: str) -> ModelCardData:
    results = []
    if origin.own is not None:
        how = origin.conditions
        for task, evaluation in origin.evaluations[origin.own].by_task().items():
            low, high = evaluation.interval
            results.append(
                EvalResult(
                    task_type="robotics",
                    dataset_type=task.partition("/")[0],
                    dataset_name=task,
                    dataset_split=None if how is None else how.states,
                    metric_type="success_rate",
                    metric_name=f"success, 95% Wilson interval {low:.4f} to {high:.4f}",
                    metric_value=round(evaluation.success_rate, 4),
                )
            )
    datasets = [x for x in map(hub_name, origin.hub_datasets) if x]
    return ModelCardData(
        base_model=base.base_model,
        datasets=datasets or None,
        eval_results=results or None,
        library_name="lerobot",
        license=base.licence,
        license_name=base.name,
        license_link=base.link,
        model_name=name.rstrip("/").rpartition("/")[2],
        pipeline_tag="robotics",
        tags=["lerobot", _kind(policy), "vision-language-action", "pi0-ript"],
    )
