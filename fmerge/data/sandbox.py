"""Jinja templates in a sandbox: they read a row and nothing else, in bounded time and memory.

Jinja's own sandbox keeps a template from Python's internals, but not from filling the memory or
looping for hours. Hence three more bounds: the tree is checked before it is compiled, loops count
their steps, and every operation that can make something long is checked.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from fmerge.data.missing import Missing, TemplateError

MOST = 100_000
"""Most characters or entries of anything that a template makes."""

MOST_STEPS = 10_000
"""Most steps of all loops together, to render one row."""

RANDOM = ("choice", "random", "shuffle")
# a width makes the result as long as its argument says: to check the result would be too late
_WIDTHS = {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "indent"}


class Template:
    """A compiled template.

    Attributes:
        columns: Names it reads from a row.
    """

    def __init__(self, source: str) -> None:
        """Compiles a template.

        Args:
            source: Jinja.

        Raises:
            TemplateError: If it is not Jinja, or uses what is not allowed here.
        """
        from jinja2 import meta
        from jinja2.exceptions import TemplateSyntaxError

        environment = _environment()
        try:
            tree = environment.parse(source)
            _check(tree)
            self.columns = frozenset(meta.find_undeclared_variables(tree)) - set(
                environment.globals
            )
            code = environment.compile(_bounded(tree))
        except TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno} of the template: {error.message}") from error
        self._source = source
        self._template = environment.template_class.from_code(
            environment, code, environment.make_globals(None)
        )

    def __reduce__(self) -> Any:
        return Template, (self._source,)  # compiled code cannot be pickled for data workers

    def text(self, row: Mapping[str, Any]) -> str:
        """Renders a row.

        Args:
            row: Column name to value.

        Returns:
            The text without white space at its ends.

        Raises:
            TemplateError: If rendering fails or exceeds a bound.
        """
        parts: list[str] = []
        size = 0
        try:
            self._start()
            # part by part, so that a text that is too long is never complete in memory
            for part in self._template.generate(row):
                size += len(part)
                if size > MOST:
                    raise TemplateError(f"makes more than {MOST:,} characters")
                parts.append(part)
        except TemplateError:
            raise
        except Exception as error:  # a template may do whatever Python's strings and lists can
            raise TemplateError(_reason(error)) from error
        return "".join(parts).strip()

    def value(self, row: Mapping[str, Any]) -> Any:
        """Computes the value of an ``expression``.

        Args:
            row: Column name to value.

        Returns:
            Its value.

        Raises:
            TemplateError: If it cannot be computed or exceeds a bound.
        """
        try:
            self._start()
            module = self._template.make_module(dict(row))
            value = module.fmerge_value
            return str(value) if isinstance(value, _undefined()) else value
        except TemplateError:
            raise
        except Exception as error:  # as above
            raise TemplateError(_reason(error)) from error

    def _start(self) -> None:
        _environment().steps = 0


def expression(source: str) -> Template:
    """Compiles an expression, whose ``value`` keeps its type.

    Args:
        source: A Jinja expression.

    Returns:
        The template.
    """
    return Template(f"{{% set fmerge_value = ({source}) %}}")


@cache
def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
        steps = 0

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_sizes(operator, left, right)
            return _small(super().call_binop(context, operator, left, right))

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in _WIDTHS and super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value: Any) -> None:
            """Leaves str.format to ``is_safe_attribute``, which refuses it."""

        def call(self, *args: Any, **kwargs: Any) -> Any:
            return _small(super().call(*args, **kwargs))

        def counted(self, items: Iterable[Any]) -> Iterator[Any]:
            for item in items:
                self.steps += 1
                if self.steps > MOST_STEPS:
                    raise TemplateError(f"its loops take more than {MOST_STEPS:,} steps")
                yield item

    # no loader: a template cannot include or import a file
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, loader=None, finalize=_no_none
    )
    for name in (*_WIDTHS, "random", "wordwrap", "xmlattr"):
        environment.filters.pop(name, None)
    environment.globals = {"range": environment.globals["range"], "zip": zip, "dict": dict}
    environment.tests["none"] = lambda value: value is None or isinstance(value, Missing)
    environment.filters |= {
        "counted": lambda items: list(environment.counted(items)),
        "joined": lambda items: _small("".join(str(_small(_no_none(item))) for item in items)),
        "most_frequent": most_frequent,
    }
    return environment


def most_frequent(items: Iterable[Any]) -> list[Any]:
    """Finds the most frequent items: a filter of promptsource.

    Args:
        items: Hashable items.

    Returns:
        All items of the highest count, in the order of their first occurrence.
    """
    counts = Counter(items)
    return [item for item, count in counts.items() if count == max(counts.values())]


@cache
def _undefined() -> type:
    from jinja2 import Undefined

    return Undefined


def _check(tree: Any) -> None:
    """Refuses statements that a prompt does not need and that cannot be bounded."""
    from jinja2 import nodes

    allowed = (nodes.Output, nodes.If, nodes.For, nodes.Assign, nodes.AssignBlock)
    for node in tree.find_all(nodes.Stmt):
        if not isinstance(node, allowed) or getattr(node, "recursive", False):
            kind = "recursive for" if isinstance(node, nodes.For) else type(node).__name__.lower()
            raise TemplateError(
                f"line {node.lineno} of the template: '{kind}' is not allowed; if, for and set are"
            )
    for node in tree.find_all(nodes.Filter):
        if node.name in RANDOM:
            raise TemplateError(
                f"line {node.lineno} of the template: the filter '{node.name}' draws at random, "
                "but a row must give the same prompt every time"
            )


def _bounded(tree: Any) -> Any:
    """Rewrites a template: its loops count their steps, and ``~`` checks its result's length."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def through(name: str, node: Any) -> Any:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    class Bounding(NodeTransformer):
        def visit_For(self, node: Any) -> Any:
            self.generic_visit(node)
            node.iter = through("counted", node.iter)
            return node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            return through("joined", nodes.List(node.nodes, lineno=node.lineno))

    bounded = Bounding().visit(tree)
    bounded.set_environment(_environment())
    return bounded


def _check_sizes(operator: str, left: Any, right: Any) -> None:
    if operator == "**":
        raise TemplateError("'**' is not allowed")
    if operator == "%" and isinstance(left, str):
        raise TemplateError("'%' is not allowed on text")
    for one, other in ((left, right), (right, left)):
        if operator == "*" and hasattr(one, "__len__") and len(one) * int(other) > MOST:
            raise TemplateError(f"makes something longer than {MOST:,}")


def _no_none(value: Any) -> Any:
    if value is None:
        raise TemplateError("gives None, which is no text")
    return value


def _small(value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict) and len(value) > MOST:
        raise TemplateError(f"makes something longer than {MOST:,}")
    if isinstance(value, int) and abs(value) > 2**63:
        raise TemplateError("makes a number that is too large")
    return value


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
