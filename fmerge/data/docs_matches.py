"""The quickstart's tasks: do two pieces of documentation or code belong together?"""

import ast
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache

from fmerge.data.documentation import key, package_folder, parsed, sources
from fmerge.data.examples import Example, Split, TaskData
from fmerge.errors import UserError, known

WORDS = range(3, 10)
"""Number of words of a description."""

_SOURCES: Mapping[str, Sequence[str]] = {"sklearn": [""], "sympy": ["matrices", "physics"]}
"""Package to the folders that are read: enough of each kind in five seconds."""
_CODE = range(14, 41)
"""Number of characters of a return statement."""
_ARGUMENTS = 3
"""At most so many arguments are shown."""
_DESCRIPTION = re.compile(r"[A-Z][^<>{}\\=|$:]*")
_END = re.compile(r"[.!?](?:\s|$)")
# "name : type", with the description below it, further in
_PARAMETER = re.compile(r"^( *)([a-zX]\w*) : [^\n]+\n((?:\1 +[^\n]+\n)+)", re.MULTILINE)


class DocsMatches(TaskData):
    """Two pieces of a library's documentation or code: do they belong together?

    Nothing is downloaded: the pieces are those of the installed packages scikit-learn and SymPy.
    In one half of the examples, the second pieces are exchanged among each other, so that no piece
    says anything by itself. Each second piece is in one example only.

    Args:
        kind: What the pieces are. description: a function and the first line of its documentation;
            parameter: a parameter and its description; code: a function and what it returns.
        train: Training examples.
        validation: Validation examples.
        test: Test examples.
        seed: Seed of the split.
    """

    def __init__(
        self,
        kind: str,
        train: int = 960,
        validation: int = 160,
        test: int = 480,
        seed: int = 0,
    ) -> None:
        if kind not in _READERS:
            raise UserError(f"DocsMatches: unknown kind '{kind}'; known: {known(_READERS)}")
        for name, size in (("train", train), ("validation", validation), ("test", test)):
            if size % 2 or size in {0, 2}:  # a single pair has none to exchange with
                raise UserError(f"DocsMatches: {name} is {size}, but must be even and 4 at least")
        self.kind = kind
        self.sizes: Mapping[Split, int] = {"train": train, "validation": validation, "test": test}
        self.seed = seed

    @property
    def labels(self) -> list[str]:
        """Whether they do."""
        return ["together", "exchanged"]

    def examples(self, split: Split) -> Sequence[Example]:
        """Reads one split.

        Args:
            split: Which one.

        Returns:
            Mappings with ``text`` and ``label``, equally many of each class.
        """
        return self._splits[split]

    @cached_property
    def _splits(self) -> Mapping[Split, list[Example]]:
        pool, needed = _pairs()[self.kind], sum(self.sizes.values())
        if len(pool) < needed:
            raise UserError(
                f"DocsMatches: there are {len(pool)} examples of {self.kind}, but {needed} are "
                "asked for; lower train, validation or test"
            )
        generator = random.Random(self.seed)
        drawn = iter(generator.sample(pool, needed))
        splits: dict[Split, list[Example]] = {}
        for split, size in self.sizes.items():
            pairs = [next(drawn) for _ in range(size)]
            kept, others = pairs[: size // 2], pairs[size // 2 :]
            both = [(kept, 0), (_exchanged(others), 1)]
            splits[split] = [
                {"text": f"{first}: {second}", "label": label}
                for found, label in both
                for first, second in found
            ]
        return splits


def _exchanged(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Gives every first piece the second piece of another pair."""
    ordered = sorted(pairs)  # half a turn further on, first pieces are others
    half = len(ordered) // 2
    for i, (first, _) in enumerate(ordered):
        yield first, ordered[(i + half) % len(ordered)][1]


@lru_cache
def _pairs() -> Mapping[str, Sequence[tuple[str, str]]]:
    """Kind to sorted pairs whose second piece occurs once, even with other names; read once."""
    found: dict[str, dict[str, tuple[str, str]]] = {kind: {} for kind in _READERS}
    for package, paths in _SOURCES.items():
        for path in sources(package_folder(package), paths):
            for node in ast.walk(parsed(path)):
                for kind, read in _READERS.items():
                    for pair in read(node):
                        unique = pair[1] if kind == "code" else key(pair[1])
                        found[kind].setdefault(unique, pair)
    return {kind: sorted(pairs.values()) for kind, pairs in found.items()}


def _descriptions(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
        described = _described((ast.get_docstring(node) or "").partition("\n\n")[0])
        if described:
            yield _signature(node), described


def _parameters(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        for _, name, text in _PARAMETER.findall((ast.get_docstring(node) or "") + "\n"):
            described = _described(text)
            if described:
                yield name, described


def _returns(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("__"):
        last = node.body[-1]
        code = ast.unparse(last) if isinstance(last, ast.Return) and last.value else ""
        if len(code) in _CODE:
            yield _signature(node), code


def _signature(node: ast.FunctionDef) -> str:
    names = [one.arg for one in node.args.args if one.arg not in {"self", "cls"}]
    return f"{node.name}({', '.join(names[:_ARGUMENTS])})"


def _described(text: str) -> str:
    """Takes a text's first sentence without its full stop; empty where its form does not fit."""
    sentence = _END.split(" ".join(text.replace("`", "").split()), maxsplit=1)[0]
    fits = len(sentence.split()) in WORDS and _DESCRIPTION.fullmatch(sentence)
    return sentence if fits else ""


_READERS: Mapping[str, Callable[[ast.AST], Iterator[tuple[str, str]]]] = {
    "description": _descriptions,
    "parameter": _parameters,
    "code": _returns,
}
