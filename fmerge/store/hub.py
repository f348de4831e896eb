"""Hub ids: which names can be one, and why a model could not be had from there."""

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from fmerge.errors import UserError

_PATIENCE: Final = 2.5
"""Seconds for which connections to the hub may fail before it counts as unreachable."""
_CONNECT: Final = 3.0
"""Seconds that one connection may take."""


def is_hub_id(source: str) -> bool:
    """Tells whether a name can be that of a model on the hub.

    Args:
        source: ``name`` or ``owner/name``, or anything else.

    Returns:
        Whether it has the form of a hub id.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def public_name(source: str) -> str:
    """Names a model without saying where it lies on this machine.

    Args:
        source: A hub id, a folder, a file, or ``package:name/folder``.

    Returns:
        The hub id; of anything else the last part of its path.
    """
    path = Path(source)
    if is_hub_id(source) and not path.exists():
        return source
    return path.name or path.resolve().name


@cache
def bound_retries() -> None:
    """Gives up a hub that cannot be reached after some 3 seconds, in this process.

    ``huggingface_hub`` waits 23 seconds between its tries, for each file. Here, once connections
    have failed for a while, a request is answered as if HF_HUB_OFFLINE were set: what is in the
    cache is used. A connection that is dropped later is tried again as ever.
    """
    from huggingface_hub import errors, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    first = last = float("-inf")

    def make() -> Any:
        client: Any = default_client_factory()
        ask = client.send

        def send(request: Any, **options: Any) -> Any:
            nonlocal first, last
            limits = request.extensions.get("timeout", {})
            limits["connect"] = min(limits.get("connect") or _CONNECT, _CONNECT)
            request.extensions["timeout"] = limits
            begun = time.monotonic()
            try:
                answer = ask(request, **options)
            except Exception as error:
                if type(error).__name__ not in {"ConnectError", "ConnectTimeout"}:
                    raise
                first, last = (first if begun - last < 60 else begun), time.monotonic()
                if last - first < _PATIENCE:
                    raise
                raise errors.OfflineModeIsEnabled(
                    f"cannot reach {request.url.host}: {error}"
                ) from error
            first = last = float("-inf")
            return answer

        client.send = send
        return client

    set_client_factory(make)


def check_on_hub(name: str) -> None:
    """Asks the hub once whether it has a model, unless its config is in the cache.

    A mistyped path looks like a hub id: without this, each file would be asked for six times.

    Args:
        name: The hub id.

    Raises:
        UserError: If the hub has no such model, or cannot be reached.
    """
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

    bound_retries()
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=10)
    except errors.GatedRepoError:
        return  # its files may be open to this user
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: no such folder, and no such model on the hub; check the path or name"
        ) from error
    except errors.HfHubHTTPError:
        return  # such as a mirror that serves files alone
    except Exception as error:
        raise UserError(
            f"{name}: no such folder, and the hub cannot be asked for a model of that name "
            f"({type(error).__name__}); check the path, or the connection"
        ) from error


def hub_trouble(name: str, what: str, error: Exception) -> str:
    """Words the failure to read a model that is no folder on this machine.

    Args:
        name: The hub id.
        what: What was to be read.
        error: What transformers raised.

    Returns:
        One line.
    """
    from huggingface_hub import errors

    found = list(causes(error))
    if any(isinstance(one, errors.GatedRepoError) for one in found):
        return (
            f"{name}: the hub's model is gated; ask for access on its page and log in with "
            "'hf auth login', or give a local folder"
        )
    if any(isinstance(one, errors.RemoteEntryNotFoundError) for one in found):
        return (
            f"{name}: the hub's model has no {what}: it may be an adapter, which is read from a "
            "folder alone (hf download), or GGUF files; give a whole Hugging Face model"
        )
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return f"{name}: no such folder, and cannot read its {what} from the hub ({reason})"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Lists an error and those that it follows from.

    Args:
        error: The last one.

    Yields:
        The errors, the last one first.
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
