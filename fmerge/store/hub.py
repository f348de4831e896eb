"""Hub ids: which names can be one, and why a model could not be had from there."""

from collections.abc import Iterator


def is_hub_id(source: str) -> bool:
    """Tells whether a name can be that of a model on the hub.

    Args:
        source: ``name`` or ``owner/name``, or anything else.

    Returns:
        Whether it has the form of a hub id.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def hub_trouble(name: str, what: str, error: Exception) -> str:
    """Words the failure to read a model that is no folder on this machine.

    Args:
        name: The hub id, or the mistyped path of a folder.
        what: What was to be read.
        error: What transformers raised.

    Returns:
        One line.
    """
    from huggingface_hub import errors

    found = list(_chain(error))
    if any(isinstance(one, errors.GatedRepoError) for one in found):
        return (
            f"{name}: no such folder, and the hub's model of that name is gated; ask for access on "
            "its page and log in with 'hf auth login', or give a local folder"
        )
    if any(isinstance(one, errors.RepositoryNotFoundError) for one in found):
        return f"{name}: no such folder, and no such model on the hub; check the path or name"
    if any(isinstance(one, errors.EntryNotFoundError) for one in found) and not any(
        isinstance(one, errors.LocalEntryNotFoundError) for one in found
    ):
        return (
            f"{name}: no such folder, and the hub's model of that name holds no {what}: it may be "
            "an adapter or GGUF files, but a whole Hugging Face model is needed"
        )
    if any(isinstance(one, errors.LocalEntryNotFoundError | ConnectionError) for one in found):
        return (
            f"{name}: no such folder, and the hub cannot be reached to look for a model of that "
            "name; check the path, or the connection"
        )
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return f"{name}: no such folder, and cannot read its {what} from the hub ({reason})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
