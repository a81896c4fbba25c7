"""What the model card of a base says: its licence, and what it was trained from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import build_hf_headers

from pi0.ript.origin.finding import hub_name
from pi0.ript.policy_settings import TOY

_CARD = "README.md"
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class BaseCard:
    """The licence by its identifier, name and address, and the hub's name of the base; None: not said."""

    licence: str | None = None
    name: str | None = None
    link: str | None = None
    base_model: str | None = None


def read_base_card(base: str | None) -> BaseCard:
    """Return what the card of a base says; nothing if it has none, or none that can be had.

    Args:
        base: A hub repository, whose card is fetched if it is not here yet, or a directory; "toy" and None
            have no card.
    """
    if base is None or base == TOY:
        return BaseCard()
    is_directory = Path(base).is_dir()
    try:
        text = (Path(base) / _CARD).read_text() if is_directory else fetch_card(base)
        front = REGEX_YAML_BLOCK.search(text)
        values: Any = yaml.safe_load(front[2]) if front else None
    except (OSError, ValueError, yaml.YAMLError, httpx.HTTPError, HfHubHTTPError, HFValidationError):
        values = None
    said = values if isinstance(values, Mapping) else {}
    known = said.get("base_model")
    return BaseCard(
        licence=_text(said.get("license")),
        name=_text(said.get("license_name")),
        link=_text(said.get("license_link")),
        base_model=(hub_name(known) if isinstance(known, str) else None) if is_directory else base,
    )


def fetch_card(repository: str) -> str:
    """Return the text of a hub repository's card, the copy that is here if there is one; asks only once."""
    cached = try_to_load_from_cache(repository, _CARD)
    if isinstance(cached, str):
        return Path(cached).read_text()
    address = hf_hub_url(repository, _CARD)
    answer = get_session().get(
        address, headers=build_hf_headers(), timeout=_PATIENCE_S, follow_redirects=True
    )
    answer.raise_for_status()
    return answer.text


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
