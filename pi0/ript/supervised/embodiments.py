"""The robots of a training: which data sets are of which, and what the policy is to know of each."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pi0 import FeatureConfig, PI0Policy
from pi0.embodiment import Embodiment, EmbodimentError, chosen_tag
from pi0.features import ACTION, STATE
from pi0.pretrained import Checkpoint
from pi0.ript.config import ConfigError
from pi0.ript.data.frame_set import FrameSet
from pi0.ript.data.settings import MixtureSettings, Tag


def require_alike(sets: Sequence[FrameSet], tag: Tag) -> None:
    """Raise ConfigError unless sets can be of one robot: their widths, and their names if it has a tag."""
    where = f"dataset_mixture: {f'embodiment_tag {tag}: ' if tag else ''}"
    widths = {frames.name: (frames.states.shape[1], frames.actions.shape[1]) for frames in sets}
    if len(set(widths.values())) > 1:
        raise ConfigError(
            f"{where}expected the same widths of state and action in all data sets, found {widths}; give "
            "each robot an embodiment_tag of its own"
        )
    for key in (STATE, ACTION) if tag else ():
        names = {frames.name: said for frames in sets if (said := frames.dimension_names.get(key))}
        if len(set(names.values())) > 1:
            raise ConfigError(
                f"{where}expected the same names of the numbers of {key} in all data sets, found {names}; "
                "give each robot an embodiment_tag of its own"
            )


def require_known(tags: Sequence[Tag], checkpoint: Checkpoint, asked: Tag, *, is_from_data: bool) -> None:
    """Raise ConfigError, before anything long, if a checkpoint cannot be trained for these robots.

    Args:
        tags: Those of the data sets.
        checkpoint: What it says.
        asked: As which the policy is to act.
        is_from_data: Whether the policy gets the data's statistics.
    """
    known, named = list(checkpoint.embodiments), [tag for tag in tags if tag is not None]
    require_tag([*known, *named], asked)
    if not named and known and checkpoint.embodiment is None:
        raise ConfigError(
            f"embodiment_tag: expected one of {', '.join(known)}, which the policy knows, in each data set, "
            "found none"
        )
    remedy = "take the data's own statistics: policy.statistics=data"
    if unknown := [tag for tag in named if known and tag not in known and not is_from_data]:
        raise ConfigError(
            f"embodiment_tag: expected one of {', '.join(known)}, which the policy knows, found "
            f"{', '.join(unknown)}; for a new robot {remedy}"
        )
    if not known and len(named) > 1 and not is_from_data:
        raise ConfigError(
            f"embodiment_tag: the statistics of the checkpoint are those of one robot, found "
            f"{', '.join(named)}; {remedy}"
        )


def require_tag(tags: Sequence[str], asked: Tag) -> None:
    """Raise ConfigError unless a robot that is to act is one of these."""
    try:
        chosen_tag(tags, asked)
    except EmbodimentError as error:
        raise ConfigError(f"policy.{error}") from error


def name_robots(
    policy: PI0Policy, robots: Mapping[str, Embodiment], asked: Tag, *, is_from_data: bool
) -> None:
    """Let a policy know robots besides those that it knows, and choose one if there is a choice to make.

    Without `is_from_data` their statistics stay the policy's.
    """
    known = policy.embodiments.known()
    own = Embodiment(policy.features, policy.statistics)
    kept = {tag: replace(robot, statistics=known.get(tag, own).statistics) for tag, robot in robots.items()}
    chosen = asked if asked is not None or len(robots) > 1 else next(iter(robots))
    policy.use_embodiments({**known, **(robots if is_from_data else kept)}, chosen)
    policy.to(policy.device)


def change_robot(policy: PI0Policy, tag: Tag, robot: Embodiment) -> None:
    """Replace what a policy knows of a robot; the tag None: of the one that it acts as."""
    embodiments = policy.embodiments
    policy.use_embodiments({**embodiments.known(), tag or embodiments.chosen: robot}, embodiments.chosen)
    policy.to(policy.device)


def robots_of_sets(policy: PI0Policy, mixture: MixtureSettings) -> list[tuple[int, FeatureConfig]] | None:
    """Return id and features of each data set's robot; None if all are of the one that the policy acts as."""
    embodiments, tags = policy.embodiments, [dataset.embodiment_tag for dataset in mixture.datasets]
    if set(tags) <= {None, embodiments.chosen}:
        return None
    known = embodiments.known()
    return [(embodiments.tags.index(tag), known[tag].features) for tag in tags if tag is not None]
