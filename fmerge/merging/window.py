"""The models of a merge, of which one tensor at a time is in memory."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Final

import torch
from torch import Tensor

from fmerge.store import StoredTensor

_MOST_AHEAD: Final = 128 << 20
"""Most bytes that are read before they are needed: of larger tensors memory has one."""

_WIDE: Final = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that models are read in as they are; of all others float32 is made."""


class Window:
    """Reads a tensor of all models together, and the next one while the first is merged.

    Args:
        models: Each model's tensors by name: the base's, if there is one, then each expert's.
        experts: How many of them are experts, the last ones.
        dtypes: The dtypes of the merge by name; float32 where one is left out.
        pool: Reads ahead.
    """

    def __init__(
        self,
        models: Sequence[Mapping[str, StoredTensor]],
        experts: int,
        dtypes: Mapping[str, torch.dtype],
        pool: Executor,
    ) -> None:
        self._models = models
        self._first = len(models) - experts
        self._dtypes = dtypes
        self._pool = pool
        self._next: dict[str, str] = {}
        self._ahead: tuple[str, Future[list[Tensor]]] | None = None
        self._now: tuple[str, list[Tensor]] | None = None

    def follow(self, order: Sequence[str]) -> None:
        """Tells in which order tensors will be asked for.

        Args:
            order: Their names.
        """
        self._next = dict(zip(order, order[1:], strict=False))

    def at(self, name: str) -> list[Tensor]:
        """Reads a tensor.

        Args:
            name: Its name.

        Returns:
            It of every model. The experts' have the dtype of the merge, if that holds the numbers
            of all; else float32.
        """
        if self._now is not None and self._now[0] == name:
            return self._now[1]
        self._now = None
        ahead, self._ahead = self._ahead, None
        found = ahead[1].result() if ahead is not None and ahead[0] == name else self._read(name)
        self._now = name, found
        following = self._next.get(name)
        if following is not None and self._bytes(following) <= _MOST_AHEAD:
            self._ahead = following, self._pool.submit(self._read, following)
        return found

    def column(self, model: int, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Shows one model as a mapping that reads a tensor when it is asked for.

        Args:
            model: Its position.
            names: What it holds, in order.

        Returns:
            The mapping.
        """
        return _Column(self, model, names)

    def _bytes(self, name: str) -> int:
        places = [one[name] for one in self._models]
        return sum(one.dtype.itemsize * _count(one.shape) for one in places)

    def _read(self, name: str) -> list[Tensor]:
        tensors = [_known(one[name].read()) for one in self._models]
        wanted = self._dtypes.get(name, torch.float32)
        tensors[self._first :] = as_merged(tensors[self._first :], wanted)
        return tensors


class _Column(Mapping[str, Tensor]):
    def __init__(self, window: Window, model: int, names: Sequence[str]) -> None:
        self._window = window
        self._model = model
        self._names = names

    def __getitem__(self, name: str) -> Tensor:
        return self._window.at(name)[self._model]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def as_merged(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Puts the experts' tensors into the dtype of their merge if it holds their numbers.

    Args:
        tensors: One tensor of each expert.
        dtype: The dtype of the merge.

    Returns:
        The tensors, all of that dtype, or all float32.
    """
    if all(tensor.dtype == dtype for tensor in tensors):
        return list(tensors)
    found = [tensor.to(dtype) for tensor in tensors]
    exact = all(
        torch.promote_types(tensor.dtype, dtype) == dtype
        or torch.equal(tensor.float(), one.float())
        for tensor, one in zip(tensors, found, strict=True)
    )
    return found if exact else [tensor.float() for tensor in tensors]


def _known(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in _WIDE else tensor.float()


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
