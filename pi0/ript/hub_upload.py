"""A directory that goes to the hub, or the reason why it does not."""

from pathlib import Path

from huggingface_hub import HfApi


class NotPushedError(RuntimeError):
    """The hub was not reached, or it refused; the message says why in one line."""


def push(directory: Path, name: str, *, private: bool = False) -> str:
    """Upload a directory to a model repository, which is made if it is not there; return its address.

    Raises:
        NotPushedError: Whatever failed: no network, no token, a refusal, an upload; the directory stays.
    """
    api = HfApi()
    try:
        address = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=directory, commit_message="Policy and model card")
    except Exception as error:  # what uploads (LFS, Xet, HTTP) raises has no class in common
        raise NotPushedError(_reason(error)) from error
    return str(address)


def _reason(error: BaseException) -> str:
    """Return an error in one line, with the one that caused it: "Error while uploading" alone says little."""
    said = [error, *([] if error.__cause__ is None else [error.__cause__])]
    return ": ".join(" ".join(str(each).split()) or type(each).__name__ for each in said)
