"""The files of a merge tensor by tensor, and what of them is on the disk already."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from torch import Tensor

from fmerge.merging.outputs import Output
from fmerge.store import ShardWriter, append_line, write_text

_PROGRESS: Final = "progress.jsonl"


class Writers:
    """Writes the tensors of all merged models, and goes on where a killed run was.

    Args:
        folder: Holds a folder for each model, by its position.
        outputs: The models.
        begun: Plain values that identify the merge: what another one wrote is removed.
    """

    def __init__(self, folder: Path, outputs: Sequence[Output], begun: Mapping[str, Any]) -> None:
        self.folder = folder
        self.outputs = outputs
        self.done = _finished(folder / _PROGRESS, begun)
        self._begun = begun
        self._unsynced: list[str] = []
        self._writers = [
            ShardWriter(folder / str(number), one.plan) for number, one in enumerate(outputs)
        ]

    def __enter__(self) -> Self:
        """Makes the files, or opens those that are there."""
        if not self.done:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        for one in self._writers:
            one.open()
        # written anew: the half line of a kill would spoil the next one
        lines = [self._begun, *([sorted(self.done)] if self.done else [])]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        write_text(self.folder / _PROGRESS, text)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the files."""
        for one in self._writers:
            one.close()

    def constants(self, moved: Mapping[str, Tensor]) -> None:
        """Writes the buffers.

        Args:
            moved: The merged ones.
        """
        for output, writer in zip(self.outputs, self._writers, strict=True):
            for name, tensor in output.values.items():
                writer.write(name, tensor)
            for name, place in output.moving.items():
                writer.write(place, output.rounded(name, moved[name]))

    def write(self, name: str, tensors: Mapping[int, Tensor]) -> None:
        """Writes one parameter.

        Args:
            name: Its name.
            tensors: The tensor, by the position of each model that gets it.
        """
        for number, tensor in tensors.items():
            output = self.outputs[number]
            if name in output.weights:
                own = tensor if tensor.dtype.itemsize < 8 else tensor.float()
                self._writers[number].write(output.weights[name], output.rounded(name, own))
        self._unsynced.append(name)

    def sync(self) -> None:
        """Makes sure that all is on the disk, and notes it there."""
        for one in self._writers:
            one.sync()
        append_line(self.folder / _PROGRESS, json.dumps(self._unsynced))
        self._unsynced = []


def _finished(progress: Path, begun: Mapping[str, Any]) -> set[str]:
    """The tensors of this merge that are on the disk."""
    if not progress.is_file():
        return set()
    first, *lines = progress.read_text(encoding="utf-8").split("\n")
    found: set[str] = set()
    if first != json.dumps(begun):
        return found
    for line in lines:
        try:
            found.update(json.loads(line))
        except ValueError:  # the half line of a kill, or the end of the file
            break
    return found
