"""The command line; ``main`` runs one command."""

from importlib import import_module


def __getattr__(name: str) -> object:
    """Imports ``main`` at its first use, so that the parser can be imported without the Trainer.

    Args:
        name: The name.

    Returns:
        The function.

    Raises:
        AttributeError: If it is another name.
    """
    if name != "main":
        raise AttributeError(f"module 'fmerge.cli' has no attribute '{name}'")
    return import_module("fmerge.cli.app").main
