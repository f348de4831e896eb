"""fmerge: merge fine-tuned transformers, and measure what a merge retains.

The public names are imported at their first use, so that ``import fmerge`` imports no torch:

- ``load_params``, ``merge``, ``estimate_fisher``: functions on dictionaries of tensors
- ``Trainer``, ``MergeOptimizer``: a search over coefficients, on data, as in ``fmerge merge``
- ``methods``, ``search``, ``data``, ``modules``: what those are given
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from fmerge.system import former_paths

# the module, and the name in it; a module alone is public itself
_PUBLIC = {
    "MergeOptimizer": ("fmerge.merging.optimizer", "MergeOptimizer"),
    "Trainer": ("fmerge.trainer", "FMergeTrainer"),
    "data": ("fmerge.data", ""),
    "estimate_fisher": ("fmerge.fisher", "estimate_fisher"),
    "load_params": ("fmerge.store.params_file", "load_params"),
    "merge": ("fmerge.merging.in_memory", "merge"),
    "methods": ("fmerge.methods", ""),
    "modules": ("fmerge.modules", ""),
    "search": ("fmerge.search", ""),
}

former_paths.install()

__all__ = [*_PUBLIC, "__version__"]  # noqa: F822, PLE0604


def __getattr__(name: str) -> object:
    """Imports a public name at its first use.

    Args:
        name: The name.

    Returns:
        What it names.

    Raises:
        AttributeError: If it is not public.
    """
    if name == "__version__":
        globals()[name] = found_version = _version()
        return found_version
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fmerge' has no attribute '{name}'")
    module, attribute = _PUBLIC[name]
    found = import_module(module)
    # stored, so that the next use is an ordinary look-up
    value: object = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def _version() -> str:
    # of the installed package, whose build took it from the tag
    try:
        return version("fmerge")
    except PackageNotFoundError:
        return "0+not.installed"  # a source tree on PYTHONPATH alone


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
