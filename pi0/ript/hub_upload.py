"""A directory that goes to the hub, or the reason why it does not."""

from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError


class NotPushedError(RuntimeError):
    """The hub was not reached, or it refused; the message says why in one line."""


def push(directory: Path, name: str, *, private: bool = False) -> str:
    """Upload a directory to a model repository, which is made if it is not there; return its address.

    Raises:
        NotPushedError: Without network or token, or refused by the hub; the directory stays as it is.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, commit_message="Policy and model card")
    except (OSError, httpx.HTTPError, HfHubHTTPError, HFValidationError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NotPushedError(reason) from error
    return str(address)
