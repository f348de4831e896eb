"""The families of tasks that are merged together, and their experts."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from derived import KINDS, Derived
from digits import write_untrained
from fields import FIELDS, FieldSentences
from halves import TOKENS, LowerHalf, write_upper_half
from lightning.pytorch import seed_everything

from fmerge.data import Digits, DocsMatches, DocsTopics, MultiTask, TaskData
from fmerge.data.digits import CHANGES
from fmerge.modules import ImageClassifier, SharedBody, TextClassifier
from fmerge.store import save_models, write_text
from fmerge.trainer import FMergeTrainer

FOLDER = Path(__file__).parent.parent / "runs" / "quality"
WORDS = 15
"""Longer sentences are left out, which takes a third of the time away."""
BASE = FOLDER / "base"
BATCH = 32
"""Of training."""


class Topics(DocsTopics):
    """Short sentences of ``DocsTopics`` in smaller splits.

    Args:
        library: sklearn, sympy or torch.
        seed: Seed of the split.
        train: Training sentences of each class.
    """

    def __init__(self, library: str, seed: int, train: int = 200) -> None:
        super().__init__(library, train=train, validation=60, test=120, seed=seed)

    def _pools(self) -> dict[str, list[str]]:
        return short_topics(self.library)


class Fields(FieldSentences):
    """The short sentences of one domain.

    Args:
        domain: scipy, sympy or torch.
        seed: Seed of the split.
    """

    def _pools(self) -> list[list[str]]:
        return _short_fields(self.domain)


def short_topics(library: str) -> dict[str, list[str]]:
    """Reads the sentences of one library.

    Args:
        library: sklearn, sympy or torch.

    Returns:
        Topic to sentences of at most ``WORDS`` words.
    """
    pools: dict[str, list[str]] = _cached(library, lambda: DocsTopics(library)._pools())
    return {topic: _short(pool) for topic, pool in pools.items()}


def _matches(kind: str, seed: int) -> TaskData:
    return DocsMatches(kind, seed=seed)


def _short_fields(domain: str) -> list[list[str]]:
    pools: list[list[str]] = _cached(f"fields_{domain}", lambda: FieldSentences(domain)._pools())
    return [_short(pool) for pool in pools]


def _cached(name: str, read: Callable[[], Any]) -> Any:
    """Reads sources once for all runs, as that takes up to ten seconds."""
    path = FOLDER / "pools" / f"{name}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(read()))
    return json.loads(path.read_text(encoding="utf-8"))


def _short(pool: Sequence[str]) -> list[str]:
    return [sentence for sentence in pool if len(sentence.split()) <= WORDS]


@cache
def lower_half() -> LowerHalf:
    """Returns the lower half that the whole process shares."""
    return LowerHalf()


class HalfClassifier(TextClassifier):  # type: ignore[misc]  # final, but for other inputs
    """A classifier by the upper half of MiniLM, which reads what the lower half makes of texts."""

    def encode(
        self,
        texts: Sequence[Sequence[str]],
        limit: int,
        task: str,
        truncation: bool | str = True,
    ) -> Any:
        """Runs the lower half on the texts that are new.

        Args:
            texts: One text for each example (n,).
            limit: Has no effect here.
            task: Has no effect here.
            truncation: Has no effect here.

        Returns:
            ``inputs_embeds`` (n, t, i) and ``attention_mask`` (n, t).
        """
        return lower_half()([text for (text,) in texts])


@dataclass(frozen=True)
class Start:
    """What the experts of a family are trained from.

    Attributes:
        folder: Where the base is.
        write: Makes it there, unless it exists.
        module: Makes the module that runs it.
        frozen: The part of the body that is not trained.
    """

    folder: Path
    write: Callable[[Path], None]
    module: Callable[..., SharedBody]
    frozen: str = ""


def write_digits(folder: Path) -> None:
    """Trains a vision transformer on scikit-learn's digits, unless it exists.

    Args:
        folder: Where.
    """
    if folder.exists():
        return
    seed_everything(0, verbose=False)
    untrained = folder.with_name("untrained_digits")
    write_untrained(untrained)
    _fit(ImageClassifier(learning_rate=2e-3), untrained, "plain", Digits(), 30, folder)


SENTENCES = Start(
    BASE, write_upper_half, partial(HalfClassifier, max_length=2 * TOKENS), "embeddings"
)
IMAGES = Start(FOLDER / "digits_base", write_digits, ImageClassifier)


@dataclass(frozen=True)
class Family:
    """Tasks that are merged together.

    Attributes:
        about: What the tasks ask.
        tasks: Their names, each with a function from a seed to its data.
        epochs: Passes over the training split that an expert takes.
        rate: Its learning rate.
        start: What they are trained from.
    """

    about: str
    tasks: Mapping[str, Callable[[int], TaskData]]
    epochs: int
    rate: float = 4e-4
    start: Start = SENTENCES


_LIBRARIES = ("sympy", "sklearn", "torch")
_TOPICS = {library: partial(Topics, library) for library in _LIBRARIES}
_ABOUT = "which part of a library a sentence of its documentation describes"

FAMILIES: Mapping[str, Family] = {
    "topics": Family(_ABOUT, _TOPICS, 2),
    "fields": Family(
        "which field of mathematics a sentence speaks of, in the documentation of three libraries",
        {domain: partial(Fields, domain) for domain in FIELDS},
        3,
    ),
    "matches": Family(
        "whether a description belongs to a function, a description to a parameter, and a "
        "statement to a function, in the documentation and code of two libraries",
        {kind: partial(_matches, kind) for kind in ("description", "parameter", "code")},
        3,
    ),
    "near": Family(_ABOUT + "; experts near to their base", _TOPICS, 1, 2e-4),
    "far": Family(_ABOUT + "; experts far from their base", _TOPICS, 6, 8e-4),
    "eight": Family(
        "the topics of three libraries, the fields of two domains, which library a sentence is "
        "from, whether its words are in order, and whether it is whole",
        {
            **{f"{one}-topics": partial(Topics, one, train=100) for one in _LIBRARIES},
            **{f"{one}-fields": partial(Fields, one) for one in ("scipy", "sympy")},
            **{kind: partial(Derived, kind, short_topics) for kind in KINDS},
        },
        3,
    ),
    "digits": Family(
        "which digit an image shows: rotated, inverted or shifted",
        {change: partial(Digits, change) for change in CHANGES if change != "none"},
        6,
        5e-4,
        IMAGES,
    ),
}


def expert(family: str, task: str, seed: int) -> Path:
    """Trains an expert, unless it exists.

    Args:
        family: One of ``FAMILIES``.
        task: One of its tasks.
        seed: Of the data, the new head and the order of the examples.

    Returns:
        Its folder.
    """
    one, output = FAMILIES[family], FOLDER / family / str(seed) / task
    if output.exists():
        return output
    start = one.start
    start.write(start.folder)
    seed_everything(seed, verbose=False)
    module = start.module(learning_rate=one.rate)
    _fit(module, start.folder, task, one.tasks[task](seed), one.epochs, output, start.frozen)
    return output


def _fit(
    module: SharedBody,
    source: Path,
    task: str,
    data: TaskData,
    epochs: int,
    output: Path,
    frozen: str = "",
) -> None:
    model: Any = module.read(str(source), task, data.labels, fresh_head=True)
    if frozen:
        model.base_model.get_submodule(frozen).requires_grad_(False)
    inputs = module.reads.load(str(source))
    module.adopt({task: model}, inputs)
    trainer = quiet_trainer(max_epochs=epochs, gradient_clip_val=1.0, limit_val_batches=0)
    trainer.fit(module, datamodule=MultiTask({task: data}, batch_size=BATCH))
    output.parent.mkdir(parents=True, exist_ok=True)
    save_models(output, {"": module.task_model(task)}, inputs)


def quiet_trainer(**options: Any) -> FMergeTrainer:
    """Makes a Trainer that saves and prints nothing.

    Args:
        **options: Of the Trainer.

    Returns:
        The Trainer, on the CPU.
    """
    return FMergeTrainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
