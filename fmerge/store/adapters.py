"""PEFT adapter folders: which are LoRA adapters that can be merged, their factors and their base.

``adapter_config.json`` and ``adapter_model.safetensors`` are plain files, which are read here
without the package peft.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open

from fmerge.errors import UserError, printable
from fmerge.store.adapter_kinds import check_lora
from fmerge.store.folders import WEIGHTS, Header, header_of, read_object
from fmerge.store.labels import set_labels
from fmerge.system.paths import expand

CONFIG: Final = "adapter_config.json"
FILES: Final = ("adapter_model.safetensors", "adapter_model.bin")
LABELS: Final = "labels"
"""In an adapter's metadata: the names of a classifier's outputs, as JSON."""

PREFIX: Final = "base_model.model."
"""What peft puts before the names of the base's modules."""

_TASKS: Final = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
"""Each task type of peft to the class of transformers that such an adapter changes."""

_BASE: ContextVar[str | None] = ContextVar("base", default=None)


@contextmanager
def adapters_on(base: str | None) -> Iterator[None]:
    """Reads adapters onto one base inside the block, whatever their configs name.

    Args:
        base: Where it is; None leaves each adapter on its own.

    Yields:
        Nothing.
    """
    token = _BASE.set(base)
    try:
        yield
    finally:
        _BASE.reset(token)


@dataclass(frozen=True)
class Target:
    """The factors of one module's change, ΔW = s · B A with s = α/r, or α/√r of rsLoRA.

    Attributes:
        names: The tensors in the file: ``A`` (r, i), ``B`` (o, r), and where there are any
            ``bias`` (o), added to the module's own, and DoRA's ``magnitude`` (o).
        rank: r.
        scale: s.
    """

    names: Mapping[str, str]
    rank: int
    scale: float


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its config, checked, and the headers of its weights.

    Attributes:
        folder: Its folder.
        config: The content of ``adapter_config.json``.
    """

    folder: Path
    config: Mapping[str, Any] = field(repr=False)

    @property
    def base(self) -> str:
        """Where its base is: the one that ``adapters_on`` gives, or that its config names.

        Raises:
            UserError: If there is neither.
        """
        named = _BASE.get() or self.config.get("base_model_name_or_path")
        if not isinstance(named, str) or not named:
            raise UserError(
                f"{self.folder / CONFIG}: names no base (base_model_name_or_path); give it by "
                "--base"
            )
        return expand(named)

    @cached_property
    def file(self) -> Path:
        """The file of its weights.

        Raises:
            UserError: If there is none.
        """
        for name in FILES:
            if (self.folder / name).is_file():
                return self.folder / name
        raise UserError(f"{self.folder}: cannot read its weights: it holds no {FILES[0]}")

    @cached_property
    def header(self) -> Header:
        """Each tensor's dtype and shape, by its name in the file."""
        return header_of(self.file)

    @property
    def labels(self) -> list[str]:
        """The names of a classifier's outputs, where fmerge has written them."""
        found = json.loads(self.metadata.get(LABELS, "[]"))
        return [str(one) for one in found] if isinstance(found, list) else []

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """What the file of its weights says of itself."""
        if self.file.suffix == ".bin":
            return {}
        with safe_open(self.file, framework="numpy") as file:
            return file.metadata() or {}

    @cached_property
    def targets(self) -> dict[str, Target]:
        """The factors by the path of their module.

        Raises:
            UserError: If a tensor is missing, or its rank is not that of the config.
        """
        parts: dict[str, dict[str, str]] = {}
        for name in self.header:
            if (found := _FACTOR.match(self._inside(name))) is not None:
                parts.setdefault(found["module"], {})[_part(found)] = name
        return {module: self._target(module, names) for module, names in parts.items()}

    @cached_property
    def replaced(self) -> dict[str, str]:
        """Names in the model to names in the file, of tensors that are saved as a whole."""
        found: dict[str, str] = {}
        for name in self.header:
            inside = self._inside(name)
            if _FACTOR.match(inside) or ".original_module." in inside:
                continue
            plain = inside.replace(".modules_to_save.", ".").replace(".base_layer.", ".")
            # where both are there, the copy that was trained counts
            if plain not in found or ".modules_to_save." in inside:
                found[plain] = name
        return found

    def _inside(self, name: str) -> str:
        if not name.startswith(PREFIX):
            raise UserError(
                f"{self.file}: tensor '{printable(name)[:80]}' is not named as peft names those "
                f"of adapters ({PREFIX}...); save the adapter again by its save_pretrained()"
            )
        return name.removeprefix(PREFIX)

    def _target(self, module: str, names: Mapping[str, str]) -> Target:
        if lacking := {"A", "B"} - set(names):
            one = min(lacking)
            raise UserError(f"{self.file}: has no lora_{one} of '{module}'; get the file again")
        rank = self.header[names["A"]][1][0] if self.header[names["A"]][1] else 0
        stated = self._pattern("rank_pattern", module, "r")
        if rank != stated or rank < 1:
            raise UserError(
                f"{self.file}: '{module}' is of rank {rank}, but {CONFIG} says {stated}; get both "
                "files of one adapter"
            )
        alpha = self._pattern("alpha_pattern", module, "lora_alpha")
        return Target(names, rank, alpha / (rank**0.5 if self.config.get("use_rslora") else rank))

    def _pattern(self, option: str, module: str, otherwise: str) -> float:
        """The number of the first pattern that fits a module, as peft chooses it."""
        patterns = self.config.get(option) or {}
        for pattern, value in patterns.items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module) is None:
                    continue
            except re.error as error:
                raise UserError(
                    f"{self.folder / CONFIG}: {option} holds {pattern[:80]!r}, which is no "
                    f"pattern ({error}); get the file again"
                ) from error
            return _number(self.folder, option, value)
        return _number(self.folder, otherwise, self.config.get(otherwise, 8))


_FACTOR: Final = re.compile(
    r"(?P<module>.+)\.lora_((?P<embedding>embedding_)?(?P<factor>[AB])(\.(?P<kind>weight|bias))?"
    r"|(?P<magnitude>magnitude_vector)(\.weight)?)$"
)


def _part(found: re.Match[str]) -> str:
    if found["magnitude"]:
        return "magnitude"
    return "bias" if found["kind"] == "bias" else str(found["factor"])


def _number(folder: Path, name: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9:
        return value
    raise UserError(
        f"{folder / CONFIG}: {name} is {str(value)[:40]!r}, but must be a positive number; get "
        "the file again"
    )


def is_adapter(source: str | Path) -> bool:
    """Recognizes an adapter's folder.

    Args:
        source: A path, or anything else.

    Returns:
        Whether it is a folder with a config of an adapter and no weights of a whole model.
    """
    folder = Path(expand(str(source)))
    whole = any((folder / name).is_file() for name in WEIGHTS)
    return not whole and (folder / CONFIG).is_file()


def read_adapter(source: str | Path) -> Adapter:
    """Opens an adapter, and refuses what base + ΔW does not describe.

    Args:
        source: Its folder.

    Returns:
        The adapter; no numbers are read.
    """
    folder = Path(expand(str(source)))
    config = read_object(folder / CONFIG)
    check_lora(folder, config)
    return Adapter(folder, config)


def as_adapted(config: Any, adapter: Adapter) -> Any:
    """Makes a base's config that of the model which an adapter was trained in.

    Args:
        config: The base's config, which is changed.
        adapter: The adapter.

    Returns:
        The config: with the architecture of the adapter's task, and the outputs of its head.
    """
    from transformers.models.auto import modeling_auto

    own = (adapter.config.get("auto_mapping") or {}).get("base_model_class")
    if auto := _TASKS.get(str(adapter.config.get("task_type"))):
        run = getattr(modeling_auto, auto)._model_mapping.get(type(config), None)
        own = getattr(run[0] if isinstance(run, tuple | list) else run, "__name__", own)
    if isinstance(own, str):
        config.architectures = [own]
    outputs = _outputs(adapter) if "Classification" in str(config.architectures) else None
    if outputs is not None and outputs != len(config.id2label or {}):
        config.num_labels = outputs  # names them LABEL_0, ..., as peft keeps no names
    if outputs is not None and len(labels := adapter.labels) == outputs:
        set_labels(config, labels)
    return config


def has_nameless_head(source: str, outputs: int) -> bool:
    """Tells whether an adapter brings a head whose outputs nothing names.

    The config's names are then the base's, which may be those of another head.

    Args:
        source: An adapter's folder, or any other source.
        outputs: The number of outputs that is wanted.

    Returns:
        Whether it is such an adapter, and its head has that many outputs.
    """
    if not is_adapter(source):
        return False
    adapter = read_adapter(source)
    return not adapter.labels and _outputs(adapter) == outputs


def _outputs(adapter: Adapter) -> int | None:
    """The number of outputs of the head that an adapter brings, if it does."""
    shapes = [adapter.header[name][1] for name in adapter.replaced.values()]
    # the last layer has fewer rows than those before it and than embeddings that are saved too
    return min((shape[0] for shape in shapes if len(shape) == 2), default=None)
