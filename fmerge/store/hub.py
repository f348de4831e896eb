"""Hub ids: which names can be one, and why a model could not be had from there."""

from collections.abc import Iterator

from fmerge.errors import UserError


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


def check_on_hub(name: str) -> None:
    """Asks the hub once whether it has a model, unless its config is in the cache.

    A mistyped path looks like a hub id: without this, each file would be asked for six times.

    Args:
        name: The hub id.

    Raises:
        UserError: If the hub has no such model, or cannot be reached.
    """
    from huggingface_hub import HfApi, errors, try_to_load_from_cache

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

    found = list(_chain(error))
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


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
