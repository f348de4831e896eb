"""Uploads what a finished run saved to the Hugging Face hub, as one commit."""

import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fmerge.errors import UserError
from fmerge.store.hub import bound_retries, causes, is_hub_id

_PAUSES: Final = (0.5, 1.0)
"""Seconds before each further try after a connection that could not be made or was dropped."""


def check_push(repository: str | None, private: bool) -> None:
    """Checks all of an upload that can be checked before there is anything to upload.

    Args:
        repository: ``owner/name``; None for no upload.
        private: Whether it must be private.

    Raises:
        UserError: If it is no name of a repository, there is no access token, or the hub is not
            to be asked.
    """
    if repository is None:
        if private:
            raise UserError("--push_private true: there is no --push_to_hub; give owner/name there")
        return
    from huggingface_hub import constants, get_token

    option = f"--push_to_hub {repository}"
    if repository.count("/") != 1 or not is_hub_id(repository):
        raise UserError(
            f"{option}: is no repository of the hub; give owner/name, such as alice/merged"
        )
    if constants.is_offline_mode():
        raise UserError(f"{option}: HF_HUB_OFFLINE is set; unset it, or leave the option out")
    if not get_token():
        raise UserError(
            f"{option}: there is no access token; set HF_TOKEN to one that may write, or run: "
            "hf auth login"
        )


def push(folder: Path, repository: str, private: bool = False) -> str:
    """Uploads a folder as one commit, so that the repository has all of it or nothing.

    The repository is made where there is none. Files that it has already are not sent again, so
    that a second try is safe.

    Args:
        folder: What a finished run saved.
        repository: ``owner/name``.
        private: Whether it must be private.

    Returns:
        The repository's address.

    Raises:
        UserError: If the hub cannot be reached or refuses, or the repository is public although
            it must be private.
    """
    bound_retries()
    try:
        return _persistent(lambda: _upload(folder, repository, private))
    except Exception as error:
        flag = " --private" if private else ""
        raise UserError(
            f"--push_to_hub {repository}: {_reason(error)}; the merge is saved; upload it later "
            f"with: hf upload {repository} {shlex.quote(str(folder))} .{flag}"
        ) from error


def _upload(folder: Path, repository: str, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():  # bars would be lines of a log, among them that of an error
        disable_progress_bars()
    api = HfApi(library_name="fmerge")
    # None: the owner's own default, which an organization may have set to private
    made = api.create_repo(repository, private=private or None, exist_ok=True)
    if private and not api.model_info(repository).private:
        raise UserError("it is public, but must be private; change that, or name another one")
    api.upload_folder(
        repo_id=repository, folder_path=folder, commit_message="Upload a merge of fmerge"
    )
    return str(made)


def _persistent(upload: Callable[[], str]) -> str:
    """Tries again where the connection, not the hub's answer, is the trouble."""
    for pause in _PAUSES:
        try:
            return upload()
        except Exception as error:
            if _answer(error) is not None or not _is_connection(error):
                raise
            time.sleep(pause)
    return upload()


def _answer(error: Exception) -> tuple[int, str] | None:
    """The hub's own answer among the causes of an error, if there is one: status and text."""
    for one in causes(error):
        response: Any = getattr(one, "response", None)
        if response is not None:
            told = getattr(one, "server_message", None) or str(one)
            return response.status_code, " ".join(told.split())[:160]
    return None


def _is_connection(error: Exception) -> bool:
    from huggingface_hub import errors

    # the base of the hub's refusals is that of its HTTP library's errors, whose name has changed
    library = errors.HfHubHTTPError.__mro__[1]
    found = list(causes(error))
    given_up = any(isinstance(one, errors.OfflineModeIsEnabled) for one in found)
    return not given_up and any(isinstance(one, library | ConnectionError) for one in found)


def _reason(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if (answer := _answer(error)) is not None:
        return f"the hub refuses it ({answer[0]}: {answer[1]})"
    gone = _is_connection(error) or any(isinstance(one, ConnectionError) for one in causes(error))
    what = "the hub cannot be reached" if gone else "cannot be uploaded"
    return f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
