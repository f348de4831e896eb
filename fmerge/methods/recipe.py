"""mergekit's recipes: what they may say, and what a parameter is for one tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fmerge.errors import UserError, known

_REQUIRED: Final = object()
_DTYPES: Final = ("float32", "float16", "bfloat16")
_KEYS: Final = ("merge_method", "models", "base_model", "parameters", "dtype", "out_dtype")
_REFUSED: Final = {
    "slices": "layers of several models cannot be stacked; merge whole models by 'models'",
    "modules": "modules cannot be merged by recipes of their own; merge whole models by 'models'",
    "tokenizer_source": "vocabularies cannot be joined; merge models of one tokenizer",
    "tokenizer": "vocabularies cannot be joined; merge models of one tokenizer",
    "chat_template": "a chat template is not replaced; that of the first model is kept",
    "experts": "a mixture of experts (mergekit-moe) cannot be made; merge the models into one",
    "gate_mode": "a mixture of experts (mergekit-moe) cannot be made; merge the models into one",
}
"""Keys of recipes that are not supported, and what to do."""

_INSTEAD: Final = {
    "passthrough": "it copies tensors, as for stacked layers, which is not supported",
    "model_stock": "give --method ModelStock",
    "nuslerp": "give --method NuSLERP",
    "multislerp": "give --method MultiSLERP",
    "sce": "give --method SCE",
}


@dataclass(frozen=True)
class Kind:
    """A merge method of mergekit.

    Attributes:
        shared: The parameters of the merge, by name, with their defaults.
        own: Those of each model.
        needs_base: Whether the models' differences from ``base_model`` are merged.
        sparsify: How these are thinned: ``magnitude``, ``outliers``, ``random``, ``ranked`` or not.
        elects: Whether entries whose sign differs from that of the sum are left out.
    """

    shared: Mapping[str, Any]
    own: Mapping[str, Any] = field(default_factory=dict)
    needs_base: bool = False
    sparsify: str = ""
    elects: bool = False


def _differences(sparsify: str, elects: bool, normalize: bool, rescale: bool, **own: float) -> Kind:
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 1.0, "int8_mask": False}
    return Kind(shared, {"weight": _REQUIRED, "density": 1.0, **own}, True, sparsify, elects)


KINDS: Final[Mapping[str, Kind]] = {
    "linear": Kind({"normalize": True}, {"weight": _REQUIRED}),
    "slerp": Kind({"t": _REQUIRED}),
    "karcher": Kind({"max_iter": 10, "tol": 1e-5}),
    "task_arithmetic": _differences("", False, False, False),
    "ties": _differences("magnitude", True, True, False),
    "dare_linear": _differences("random", False, False, True),
    "dare_ties": _differences("random", True, False, True),
    "breadcrumbs": _differences("outliers", False, False, False, gamma=0.01),
    "breadcrumbs_ties": _differences("outliers", True, False, False, gamma=0.01),
    "della": _differences("ranked", True, True, True, epsilon=0.15),
    "della_linear": _differences("ranked", False, False, True, epsilon=0.15),
}
"""The methods that are supported, with mergekit 0.1.5's parameters and defaults."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        method: Its ``merge_method``.
        models: The models that are merged, in order: of methods on differences without the base.
        base: Its ``base_model``, if there is one.
        parameters: The parameters of all models.
        own: The parameters of each model alone.
        dtype: The dtype that is computed in; that of the models when None.
        out_dtype: The dtype that is written; ``dtype`` when None.
    """

    method: str
    models: Sequence[str]
    base: str | None
    parameters: Mapping[str, Any]
    own: Sequence[Mapping[str, Any]]
    dtype: str | None = None
    out_dtype: str | None = None

    @property
    def kind(self) -> Kind:
        """What the method is."""
        return KINDS[self.method]

    def shared(self, tensor: str, depth: float) -> dict[str, Any]:
        """Finds the parameters of one tensor that are not of single models.

        Args:
            tensor: Its name.
            depth: Where its layer is, from 0 of the first to 1 of the last.

        Returns:
            Values by name.
        """
        return self._values(self.kind.shared, [self.parameters], tensor, depth)

    def each(self, tensor: str, depth: float) -> list[dict[str, Any]]:
        """Finds the parameters of one tensor for each model.

        Args:
            tensor: Its name.
            depth: Where its layer is, from 0 of the first to 1 of the last.

        Returns:
            Values by name, for each model in order.
        """
        return [
            self._values(self.kind.own, [own, self.parameters], tensor, depth) for own in self.own
        ]

    def _values(
        self,
        wanted: Mapping[str, Any],
        scopes: Sequence[Mapping[str, Any]],
        tensor: str,
        depth: float,
    ) -> dict[str, Any]:
        found = {}
        for name, default in wanted.items():
            given = [_at(scope[name], tensor, depth) for scope in scopes if name in scope]
            value = next((one for one in given if one is not None), default)
            if value is _REQUIRED:
                raise ValueError(f"parameters: {name} is not set for tensor '{tensor}'")
            found[name] = bool(value) if isinstance(default, bool) else value
        return found


def read_recipe(tree: Any) -> Recipe:
    """Checks a recipe.

    Args:
        tree: What its YAML holds.

    Returns:
        The recipe.

    Raises:
        UserError: If an entry is unknown, not supported, or missing.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"holds {type(tree).__name__}, but a recipe is a mapping")
    for key in tree:
        if key in _REFUSED:
            raise UserError(f"{key}: is not supported: {_REFUSED[key]}")
        if key not in _KEYS:
            raise UserError(f"{key}: is no entry of a recipe; known: {known(_KEYS)}")
    method = str(tree.get("merge_method"))
    if method not in KINDS:
        instead = _INSTEAD.get(method, f"known: {known(KINDS)}")
        raise UserError(f"merge_method: is {method!r}, which is not supported; {instead}")
    for key in ("dtype", "out_dtype"):
        if tree.get(key) not in {None, *_DTYPES}:
            raise UserError(f"{key}: is {tree[key]!r}, but must be one of {known(_DTYPES)}")
    kind, base = KINDS[method], tree.get("base_model")
    shared = _checked("parameters", tree.get("parameters"), {**kind.shared, **kind.own})
    models, own = _models(tree.get("models"), kind)
    needs = kind.needs_base or method == "slerp"
    if base is not None:
        _check_model("base_model", base)
    elif needs:
        raise UserError(f"base_model: is not set, but {method} needs it")
    if kind.needs_base and base in models:
        place = models.index(base)
        del models[place], own[place]
    elif not kind.needs_base and base is not None and base not in models:
        models, own = [*models, base], [*own, {}]
    if method == "slerp" and len(models) != 2:
        raise UserError(f"models: slerp merges two, the base and another, not {len(models)}")
    return Recipe(
        method=method,
        models=models,
        base=base if needs else None,
        parameters=shared,
        own=own,
        dtype=tree.get("dtype"),
        out_dtype=tree.get("out_dtype"),
    )


def _models(given: Any, kind: Kind) -> tuple[list[str], list[Mapping[str, Any]]]:
    if not isinstance(given, list) or not given:
        raise UserError("models: must be a list of entries with a 'model' each")
    names: list[str] = []
    own: list[Mapping[str, Any]] = []
    for number, entry in enumerate(given):
        place = f"models[{number}]"
        if not isinstance(entry, Mapping) or "model" not in entry:
            raise UserError(f"{place}: must be a mapping with a 'model'")
        if unknown := set(entry) - {"model", "parameters"}:
            raise UserError(f"{place}.{min(map(str, unknown))}: is no entry of a model")
        _check_model(f"{place}.model", entry["model"])
        if entry["model"] in names:
            raise UserError(f"{place}.model: {entry['model']} is listed twice")
        names.append(entry["model"])
        own.append(_checked(f"{place}.parameters", entry.get("parameters"), kind.own))
    return names, own


def _check_model(place: str, name: Any) -> None:
    if not isinstance(name, str) or "+" in name:
        raise UserError(
            f"{place}: is {name!r}, but must be a folder or a hub id; merge an adapter into its "
            "base first"
        )


def _checked(place: str, given: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"{place}: must be a mapping of parameters")
    for name, setting in given.items():
        if name not in wanted:
            raise UserError(f"{place}.{name}: is no parameter here; known: {known(wanted)}")
        _check_setting(f"{place}.{name}", setting)
    return dict(given)


def _check_setting(place: str, setting: Any) -> None:
    """Checks a number, a gradient, or a list of filters."""
    parts = setting if isinstance(setting, list) else [setting]
    if not parts:
        raise UserError(f"{place}: is an empty list")
    filters = [isinstance(one, Mapping) for one in parts]
    if any(filters):
        for one in parts:
            if not isinstance(one, Mapping) or not {"value"} <= one.keys() <= {"value", "filter"}:
                raise UserError(f"{place}: {one!r} is no filter, which has 'value' and 'filter'")
            _check_setting(place, one["value"])
        return
    for one in parts:
        if _number(one) is None:
            raise UserError(f"{place}: is {one!r}, but must be a number")


def _number(value: Any) -> bool | float | None:
    """A number as YAML gives it: 1e-5 without a point is a text there."""
    if isinstance(value, bool | int | float):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _at(setting: Any, tensor: str, depth: float) -> bool | float | None:
    """The value for one tensor; None where no filter takes it."""
    parts = setting if isinstance(setting, list) else [setting]
    if any(isinstance(one, Mapping) for one in parts):
        for one in parts:
            name = one.get("filter")
            if name is None or name == "*" or name in tensor:
                return _at(one["value"], tensor, depth)
        return None
    if not isinstance(setting, list):
        return _number(setting)
    values = [value for one in setting if (value := _number(one)) is not None]
    if any(isinstance(one, bool) for one in values):  # not interpolated
        return values[int(depth * (len(values) - 1))]
    place = depth * (len(values) - 1)
    first = int(place)
    share, last = place - first, min(len(values) - 1, first + 1)
    return (1 - share) * values[first] + share * values[last]
