"""What makes a model's inputs and travels with it: a tokenizer, or an image processor."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, final

from fmerge.store.tokenizer_match import check_tokenizer, give_padding
from fmerge.store.tokenizer_parts import tokenizer_differences, vocabulary_difference
from fmerge.store.tokenizers import find_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Preprocessors(ABC):
    """One kind of preprocessors: how they are read, compared and found to fit.

    Attributes:
        word: What one is called.
        auto: The class of transformers that reads one.
    """

    word: str
    auto: str

    @abstractmethod
    def load(self, source: str) -> Any:
        """Reads the preprocessor that belongs to a checkpoint.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

        Returns:
            The preprocessor.
        """

    @abstractmethod
    def find(self, source: str) -> Any:
        """Reads a checkpoint's preprocessor, if it was saved with one.

        Args:
            source: A Hugging Face folder, a hub id, or a Lightning ``.ckpt`` of a fit.

        Returns:
            The preprocessor; None where there is none.
        """

    @abstractmethod
    def conflict(self, one: Any, other: Any) -> str:
        """Finds what forbids to merge models of two preprocessors.

        Args:
            one: A preprocessor.
            other: Another.

        Returns:
            What they differ in; empty where their models may be merged.
        """

    @abstractmethod
    def differences(self, one: Any, other: Any) -> list[str]:
        """Compares two preprocessors as a whole.

        Args:
            one: A preprocessor.
            other: Another.

        Returns:
            The names of what differs; none where they do the same.
        """

    @abstractmethod
    def check(self, model: Any, own: Any, source: str) -> None:
        """Checks that a preprocessor fits a network, and completes either where that can be done.

        Args:
            model: The network.
            own: Its preprocessor.
            source: Where they are from, for errors.
        """


@final
class Tokenizers(Preprocessors):
    """Tokenizers: those of a merge have one vocabulary."""

    word = "tokenizer"
    auto = "AutoTokenizer"

    def load(self, source: str) -> "PreTrainedTokenizerBase":
        """Reads a tokenizer, by ``load_tokenizer``."""
        return load_tokenizer(source)

    def find(self, source: str) -> "PreTrainedTokenizerBase | None":
        """Reads a tokenizer if there is one, by ``find_tokenizer``."""
        return find_tokenizer(source)

    def conflict(self, one: Any, other: Any) -> str:
        """Finds tokens of different ids."""
        tokens = vocabulary_difference(one, other)
        return f"{len(tokens)} tokens, such as '{tokens[0]}'" if tokens else ""

    def differences(self, one: Any, other: Any) -> list[str]:
        """Compares steps and settings."""
        return tokenizer_differences(one, other)

    def check(self, model: Any, own: Any, source: str) -> None:
        """Checks that every id has an embedding; gives both one padding token if there is any."""
        check_tokenizer(model, own, source)
        give_padding(model, own, source, needed=False)


TOKENIZERS: Final = Tokenizers()


@final
class NoPreprocessors(Preprocessors):
    """Nothing travels with the models: the module's own code makes their inputs."""

    word = "preprocessor"
    auto = ""

    def load(self, source: str) -> tuple[()]:
        """Reads nothing."""
        return ()

    def find(self, source: str) -> tuple[()]:
        """Reads nothing, which every checkpoint has."""
        return ()

    def conflict(self, one: Any, other: Any) -> str:
        """Finds no conflict."""
        return ""

    def differences(self, one: Any, other: Any) -> list[str]:
        """Finds no difference."""
        return []

    def check(self, model: Any, own: Any, source: str) -> None:
        """Checks nothing."""


NO_PREPROCESSORS: Final = NoPreprocessors()
