"""Template files: fmerge's own, and those of promptsource."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from fmerge.data.tables import Files
from fmerge.errors import UserError, known
from fmerge.system.paths import expand

SHIPPED = Path(__file__).parent / "templates"
SPLITS = ("train", "validation", "test")
_PROMPTSOURCE = ("!Template", "!TemplateMetadata")


@dataclass(frozen=True)
class Fields:
    """The fields of a template file.

    Attributes:
        source: The data set: a hub id or a path.
        name: Its configuration.
        splits: Train, validation or test to the data set's own split, or to files.
        text: Jinja of the prompt.
        choices: A Jinja text for each choice, or an expression that gives a list.
        label: An expression for the true choice: its index, or its text.
        answer: An expression or Jinja text for a free answer, in the place of choices and label.
        obtain: How to obtain a data set that has no source.
        jinja: promptsource's prompt and target in one text.
        answer_choices: promptsource's choices in one text; None where its target is a free
            answer.
    """

    source: str | None = None
    name: str | None = None
    splits: Mapping[str, Files] = field(default_factory=dict)
    text: str | None = None
    choices: str | list[str] | None = None
    label: str | None = None
    answer: str | None = None
    obtain: str | None = None
    jinja: str | None = None
    answer_choices: str | None = None


def shipped() -> list[str]:
    """Lists the templates that come with fmerge.

    Returns:
        Their names.
    """
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_template(template: str, name: str | None = None) -> Fields:
    """Reads a template file.

    Args:
        template: A shipped template's name, or the path of a YAML file.
        name: Which template of a promptsource file.

    Returns:
        Its fields.

    Raises:
        UserError: If there is no such file, or it is not a template.
    """
    # names come before paths: a folder "paws" beside the command must not hide the template
    path = SHIPPED / f"{template}.yaml" if template in shipped() else Path(expand(template))
    if not path.is_file():
        raise UserError(
            f"unknown template '{template}'; give a YAML file or one of: {known(shipped())}"
        )
    content = _load(path, template)
    if not isinstance(content, dict):
        raise UserError(f"template {template}: holds no fields, but {type(content).__name__}")
    if "templates" in content:
        return _promptsource(content, template, name)
    if name is not None:
        raise UserError(f"template {template}: holds one template; leave template_name out")
    return check_fields(content, f"template {template}")


def check_fields(content: Mapping[str, Any], where: str) -> Fields:
    """Checks a template's fields.

    Args:
        content: Field name to value.
        where: The template's name, for errors.

    Returns:
        The fields.

    Raises:
        UserError: If a field is unknown or of the wrong kind.
    """
    names = {one.name for one in fields(Fields)} - {"jinja", "answer_choices"}
    for key, value in content.items():
        if key not in names:
            raise UserError(f"{where}: unknown field '{key}'; known: {known(names)}")
        if key == "splits":
            _check_splits(value, where)
        elif key == "choices" and isinstance(value, list):
            wrong = next((one for one in value if not isinstance(one, str)), None)
            if wrong is not None:
                raise UserError(f"{where}: choices has {wrong!r}, which is no text; quote it")
        elif not isinstance(value, str):  # YAML gives an unquoted yes or 1.0 another type
            raise UserError(f"{where}: {key} is {value!r}, which is no text; quote it")
    return Fields(**content)


def _check_splits(value: Any, where: str) -> None:
    if not isinstance(value, dict) or not all(map(_are_texts, value.values())):
        raise UserError(f"{where}: splits is {value!r}, but must map {known(SPLITS)} to splits")
    for split in value:
        if split not in SPLITS:
            raise UserError(f"{where}: unknown split '{split}' in splits; known: {known(SPLITS)}")


def _are_texts(value: Any) -> bool:
    several = value if isinstance(value, list) and value else [value]
    return all(isinstance(one, str) for one in several)


def _promptsource(content: dict[str, Any], template: str, name: str | None) -> Fields:
    where = f"template {template}"
    entries = content["templates"]
    entries = list(entries.values()) if isinstance(entries, dict) else []
    named = {str(one.get("name")): one for one in entries if isinstance(one, dict)}
    if not named:
        raise UserError(f"{where}: its templates hold no template")
    if name is None and len(named) > 1:
        raise UserError(f"{where}: has several; set template_name to one of: {known(named)}")
    if name is not None and name not in named:
        raise UserError(f"{where}: has no template '{name}'; it has: {known(named)}")
    chosen = next(iter(named.values())) if name is None else named[name]
    jinja, choices = chosen.get("jinja"), chosen.get("answer_choices")
    if not isinstance(jinja, str) or not isinstance(choices, str | None):
        key = "answer_choices" if isinstance(jinja, str) else "jinja"
        raise UserError(
            f"{where}: '{chosen.get('name')}' has no text as its {key}; pick another template_name"
        )
    return Fields(
        source=content.get("dataset"),
        name=content.get("subset"),
        jinja=jinja,
        answer_choices=choices,
    )


def _load(path: Path, template: str) -> Any:
    import yaml

    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        problem = " ".join(str(error.problem).split())
        if "constructor for the tag" in problem:
            tag = problem.rpartition(" ")[2]
            problem = f"the tag {tag} is not allowed; {known(_PROMPTSOURCE)} alone are"
        raise UserError(f"template {template}, line {line}: {problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"template {template}: {' '.join(str(error).split())}") from error


@cache
def _loader() -> Any:
    """A safe loader that reads promptsource's two tags as plain mappings; nothing is executed."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    def mapping(loader: Any, node: Any) -> Any:
        return loader.construct_mapping(node, deep=True)

    for tag in _PROMPTSOURCE:
        Loader.add_constructor(tag, mapping)
    return Loader
