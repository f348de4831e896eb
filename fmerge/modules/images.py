"""Image classification on any ``AutoModelForImageClassification``."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch

from fmerge.errors import UserError, shortened
from fmerge.fisher.batches import evaluating
from fmerge.modules.classification import Classifier
from fmerge.modules.preprocessed import PreprocessedModule
from fmerge.modules.tokenized import model_inputs
from fmerge.store import IMAGE_PROCESSORS, Head, Preprocessors, open_image

if TYPE_CHECKING:
    pass


class ImageModule(PreprocessedModule, ABC):
    """A task module whose inputs are images, made for each task by its own image processor."""

    reads: ClassVar[Preprocessors] = IMAGE_PROCESSORS

    def check_preprocessor(self, model: Any, preprocessor: Any, source: str) -> None:
        """Checks that a network takes what its image processor makes, by a grey image.

        Args:
            model: The network.
            preprocessor: The image processor.
            source: Where the network is from, for errors.

        Raises:
            UserError: If it does not.
        """
        from PIL.Image import new

        edges = dict(preprocessor.size or {})
        edge = edges.get("height") or edges.get("shortest_edge") or 224
        # a processor that does not resize is for images of the model's own size
        shape = (40, 30) if preprocessor.do_resize else (edge, edge)
        inputs = preprocessor(images=[new("RGB", shape, "grey")], return_tensors="pt")
        weight = next(model.parameters())
        moved = {
            key: one.to(weight if one.is_floating_point() else weight.device)
            for key, one in inputs.items()
        }
        try:
            # in eval mode no batch norm moves
            with torch.no_grad(), evaluating(list(model.modules())):
                model(**model_inputs(model, moved))
        except (ValueError, RuntimeError) as error:
            made = tuple(next(iter(inputs.values())).shape[1:])
            reason = shortened(error, 200)
            raise UserError(
                f"{source}: its image processor makes inputs of shape {made}, which its model "
                f"does not take ({reason}); give the preprocessor_config.json that the model was "
                "trained with"
            ) from error

    def collate(self, examples: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
        """Opens n images and turns them into the network's inputs.

        Args:
            examples: Mappings with ``image`` and ``label``.
            task: The task's name.

        Returns:
            The image processor's tensors (n, …), ``labels`` (n,) and ``task``.
        """
        _check_images(examples, task)
        processor = self.preprocessor_of(task)
        images = [open_image(one["image"]) for one in examples]
        inputs = dict(processor(images=images, return_tensors="pt"))
        labels = torch.tensor([one["label"] for one in examples])
        return {**inputs, "labels": labels, "task": task}


@final
class ImageClassifier(Classifier, ImageModule):
    """Image classification: one shared body, one head per task, from Hugging Face.

    Batch norms run on their running statistics but in a fit.
    """

    head: ClassVar[Head] = "image classification"


def _check_images(examples: Sequence[Mapping[str, Any]], task: str) -> None:
    """Refuses the examples of another kind of module, and names it."""
    if "image" not in examples[0]:
        raise UserError(
            f"task '{task}': its examples have no images; give ImageFiles or ImageSet, or a "
            "--model for texts, such as TextClassifier"
        )
