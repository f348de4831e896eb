"""What a command is given, its arguments and files, before and after they are parsed."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml

from fmerge.errors import UserError
from fmerge.system.paths import expand, expand_if_path

_CONFIGS = {"-c", "--config"}
_FIELDS = ("path", "fisher", "donor")
"""Fields of an expert that the command line sets one by one; see ``Expert``."""

_PLACES = {"default_root_dir", "dirpath", "save_dir", "root_dir"}
"""Options of Lightning that are paths, whatever they look like."""

_PLAIN = {str, int, float, bool, Path, NoneType}


def config_files(args: Sequence[str]) -> list[Path]:
    """Lists the configuration files of a command line.

    Args:
        args: The command line.

    Returns:
        What each ``--config`` gives, which need not exist.
    """
    return [Path(value) for name, value in _options(args) if name in _CONFIGS]


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    for option, value in itertools.pairwise([*args, ""]):
        name, equals, joined = option.partition("=")
        yield name, joined if equals else value


def names_own_data(args: Sequence[str]) -> bool:
    """Tells whether a command line names a class of its own for the data.

    Args:
        args: The command line.

    Returns:
        Whether ``--data`` is a class path, or a configuration file has one under ``data``.
    """
    for name, value in _options(args):
        if name == "--data" and re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", value):
            return not value.endswith((".yaml", ".yml", ".json"))
    found = [read_yaml(path) for path in config_files(args)]
    data = [one.get("data") for one in found if isinstance(one, dict)]
    return any(isinstance(one, dict) and "class_path" in one for one in data)


def read_yaml(path: Path) -> Any:
    """Reads a configuration file.

    Args:
        path: The file.

    Returns:
        Its content; None if it is no file or no YAML.
    """
    try:
        return yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def wrong_config(path: Path) -> str:
    """Words what is wrong with a configuration file, if it is there and something is.

    Args:
        path: The file.

    Returns:
        One line, or nothing.
    """
    if not path.is_file():
        return ""
    try:
        found = yaml.safe_load(path.read_bytes())
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        return f"--config {path}: is no YAML ({error}); mend the file"
    if found is None or isinstance(found, dict):
        return ""
    return f"--config {path}: holds {type(found).__name__}, but options by name are needed"


def prepared(args: Sequence[str]) -> list[str]:
    """Rewrites a command line into what the parser understands.

    Args:
        args: The command line.

    Returns:
        It, with ``~`` and variables in the names of its files replaced, and with the fields of
        each expert in one argument.
    """
    found = list(args)
    for index, option in enumerate(found):
        name, equals, joined = option.partition("=")
        if name in _CONFIGS and equals:
            found[index] = f"{name}={expand(joined)}"
        elif name in _CONFIGS and index + 1 < len(found):
            found[index + 1] = expand(found[index + 1])
    return _join_fields(found)


def _join_fields(args: list[str]) -> list[str]:
    """``--experts.a.path P --experts.a.fisher F`` as ``--experts.a='{path: P, fisher: F}'``."""
    # the parser would forget the first field when it sees the second
    fielded = {_expert(option)[0] for option in args if _expert(option)[1]}
    if not fielded:
        return args
    experts: dict[str, dict[str, Any]] = {name: {} for name in fielded}
    fields: dict[str, dict[str, Any]] = {name: {} for name in fielded}
    for file in config_files(args):
        content = read_yaml(file)
        _update(experts, content.get("experts") if isinstance(content, dict) else None)
    rest: list[str] = []
    arguments = iter(args)
    for option in arguments:
        key, equals, value = option.partition("=")
        name, field = _expert(option)
        if name in experts or key == "--experts":
            value = value if equals else next(arguments, "")
            if key == "--experts":
                _update(experts, _loaded(value))
                rest += [key, value]
            elif field:
                fields[name][field] = _loaded(value) if field == "donor" else value
            else:
                _update(experts, {name: _loaded(value)})
            continue
        rest.append(option)
    whole = {name: one | fields[name] for name, one in experts.items()}
    return [*rest, *(f"--experts.{name}={_dumped(name, one)}" for name, one in whole.items())]


def _expert(option: str) -> tuple[str, str]:
    """The name and the field in ``--experts.name.field``; names may have dots."""
    key = option.partition("=")[0]
    if not key.startswith("--experts."):
        return "", ""
    rest = key.removeprefix("--experts.")
    name, _, field = rest.rpartition(".")
    if name and field not in _FIELDS and (close := get_close_matches(field, _FIELDS, 1, 0.75)):
        raise UserError(
            f"{key}: an expert has no {field}; did you mean --experts.{name}.{close[0]}? (An "
            f"expert of that name is given by --experts '{{{rest}: its path}}'.)"
        )
    return (name, field) if name and field in _FIELDS else (rest, "")


def _update(experts: dict[str, dict[str, Any]], given: Any) -> None:
    for name, one in given.items() if isinstance(given, dict) else ():
        if name in experts:
            experts[name] = dict(one) if isinstance(one, dict) else {"path": one}


def _dumped(name: str, one: Mapping[str, Any]) -> str:
    if "path" not in one:
        raise UserError(
            f"--experts.{name}.path: required but not given; name the model whose "
            f"{' and '.join(one)} is given"
        )
    return json.dumps(one)


def _loaded(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def top_level(actions: Sequence[Any]) -> dict[str, bool]:
    """Lists the options of a command by the first part of their names.

    Args:
        actions: The actions of its parser.

    Returns:
        Name to whether a mapping or a list may stand there.
    """
    found: dict[str, bool] = {}
    for action in actions:
        first, dot, _ = action.dest.partition(".")
        nests = bool(dot) or not _is_plain(getattr(action, "_typehint", str))
        found[first] = found.get(first, False) or nests
    return found


def _is_plain(hint: Any) -> bool:
    kinds = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    return set(kinds) <= _PLAIN


def without_foreign(content: str, foreign: Mapping[str, bool]) -> tuple[str, list[str]]:
    """Leaves out of a configuration what belongs to other commands.

    Args:
        content: The configuration, as YAML.
        foreign: Options of other commands that this one lacks, as of ``top_level``.

    Returns:
        The rest, unchanged where nothing is left out; and the names that are.
    """
    root = yaml.compose(content, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return content, []
    left, rest = [], []
    for key, value in root.value:
        # a mapping under an option that takes a text is a misspelt other option
        fits = isinstance(value, yaml.ScalarNode) or foreign.get(key.value, False)
        if key.value in foreign and fits:
            left.append(key.value)
        else:
            rest.append((key, value))
    if not left:
        return content, []
    root.value = rest
    text: str = yaml.serialize(root, Dumper=yaml.SafeDumper)
    return text, left


def expanded(value: Any, name: str = "") -> Any:
    """Expands the paths in a parsed configuration, wherever they are.

    Args:
        value: A value, or a tree of them, which is changed in place where it can be.
        name: The option.

    Returns:
        The value with ``~`` and environment variables replaced in whatever is plainly a path.
    """
    if isinstance(value, str):
        return expand(value) if name in _PLACES else expand_if_path(value)
    if isinstance(value, Path):
        return Path(expand(value))
    if isinstance(value, list):
        value[:] = [expanded(one) for one in value]
    elif isinstance(value, tuple):
        return tuple(expanded(one) for one in value)
    elif isinstance(value, dict):
        value.update({key: expanded(one, str(key)) for key, one in value.items()})
    elif hasattr(value, "__dict__") and hasattr(value, "as_dict"):  # a namespace of jsonargparse
        for key, one in vars(value).items():
            vars(value)[key] = expanded(one, key)
    return value


def places(trees: Sequence[Any], args: Sequence[str], owner: str, key: str) -> list[str]:
    """Finds where an option of a class was given.

    Args:
        trees: The contents of the configuration files.
        args: The command line.
        owner: The class's name.
        key: The option's name.

    Returns:
        Dotted names, without the ``init_args`` in them.
    """
    on_line = [
        name[2:] for name, _ in _options(args) if name.startswith("--") and name.endswith(f".{key}")
    ]
    in_files = [one for tree in trees for one in _places(tree, owner, key, "", "")]
    return [re.sub(r"\.init_args\b", "", one) for one in (*on_line, *in_files)]


def _places(tree: Any, owner: str, key: str, path: str, kind: str) -> Iterator[str]:
    """Places of a key below a mapping; ``kind`` is the class_path that stands beside init_args."""
    if isinstance(tree, list):
        for one in tree:
            yield from _places(one, owner, key, path, kind)
    if not isinstance(tree, dict):
        return
    own = str(tree.get("class_path", kind)).rpartition(".")[2]
    if key in tree and own in {owner, ""}:
        yield f"{path}.{key}".lstrip(".")
    for name, one in tree.items():
        below = own if name == "init_args" else ""
        yield from _places(one, owner, key, f"{path}.{name}".lstrip("."), below)
