"""Image classification by CLIP or SigLIP: a vision tower, and a frozen head from class names."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmerge.errors import UserError, known
from fmerge.modules.classification import Classifier
from fmerge.modules.images import ImageModule
from fmerge.modules.optimization import Scheduler
from fmerge.params import Params, params_of
from fmerge.store import (
    Kind,
    SavedForm,
    fitted_tower,
    is_lightning,
    is_tower,
    kind_of,
    load_clip,
    load_clip_processor,
    load_tokenizer,
    load_tower,
    save_models,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEMPLATE: Final = "a photo of a {}."
"""The prompt of a class where none is given (Radford et al., 2021, section 3.1.4)."""

_PARTS: Final = ("vision_model", "visual_projection")


class ClipNetwork(nn.Module):
    """The vision tower of a model of images and texts, with a frozen head of class texts.

    logits[n,c] = s · ⟨u[n], v[c]⟩, u the normalised image features and v the normalised text
    features. SigLIP adds a bias that is the same for all classes, which softmax cancels.

    Args:
        whole: The model whose tower is copied.
        source: Where it was read from.
        labels: Names of the classes.
        texts: v (c, d); None where the network is never run.
    """

    scale: Tensor
    texts: Tensor | None

    def __init__(
        self, whole: Any, source: str, labels: Sequence[str], texts: Tensor | None
    ) -> None:
        super().__init__()
        self.vision_model: nn.Module = copy.deepcopy(whole.vision_model)
        projection = getattr(whole, "visual_projection", nn.Identity())  # SigLIP has none
        self.visual_projection: nn.Module = copy.deepcopy(projection)
        self.config = copy.deepcopy(whole.config.vision_config)
        self.config.id2label = dict(enumerate(labels))
        self.name_or_path = source
        self.base_model_prefix = "vision_model"
        # not saved: class names, templates and the text tower make them again
        self.register_buffer("scale", whole.logit_scale.detach().exp(), persistent=False)
        self.register_buffer("texts", texts, persistent=False)

    @property
    def base_model(self) -> nn.Module:
        """The vision tower."""
        return self.vision_model

    def forward(self, pixel_values: Tensor) -> Any:
        """Computes the logits of images.

        Args:
            pixel_values: Images (n, 3, h, w).

        Returns:
            An object with ``logits`` (n, c).

        Raises:
            RuntimeError: If it was read without class names.
        """
        from transformers.modeling_outputs import ImageClassifierOutput

        if self.texts is None:
            raise RuntimeError("the network has no class texts: read it with labels")
        pooled = self.vision_model(pixel_values=pixel_values).pooler_output
        features = F.normalize(self.visual_projection(pooled), dim=-1)
        return ImageClassifierOutput(logits=self.scale * features @ self.texts.T)


@final
class ClipClassifier(Classifier, ImageModule):
    """Image classification by a vision tower, whose head is frozen class texts.

    The vision tower and its projection are trained and merged; text tower and scale stay those of
    ``path``. A merge is saved as one whole model, which serves all tasks. A class's text features
    are the mean over templates of the normalised ones, normalised (Radford et al., 2021).

    Args:
        path: The whole model of images and texts: Hugging Face folder, hub id, or
            ``package:name/folder``. Its text tower makes the heads of all experts; where left out,
            each expert must be a whole model and makes its own.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW, on matrices only.
        scheduler: How the learning rate changes after the warm-up.
        warmup_fraction: Share of the training steps over which the learning rate rises from 0.
        templates: Task name to prompts in which ``{}`` stands for the class; ``a photo of a {}.``
            where a task is not in it.
        class_texts: Task name to what stands for each class in the prompts, in the order of the
            labels; the labels, with spaces for underscores, where a task is not in it.
        tasks: Filled in by the data: task name to the names of its classes.
        kinds: Filled in by the data: task name to what these names are, which is classes.
    """

    def __init__(
        self,
        path: str | None = None,
        learning_rate: float = 1e-5,
        weight_decay: float = 0.0,
        scheduler: Scheduler = "cosine",
        warmup_fraction: float = 0.1,
        templates: dict[str, list[str]] | None = None,
        class_texts: dict[str, list[str]] | None = None,
        tasks: dict[str, list[str]] | None = None,
        kinds: dict[str, Kind] | None = None,
    ) -> None:
        super().__init__(
            path, learning_rate, weight_decay, scheduler, warmup_fraction, tasks, kinds=kinds
        )
        self.templates = templates or {}
        self.class_texts = class_texts or {}
        for task, prompts in self.templates.items():
            if not prompts or not all(one.count("{}") == 1 for one in prompts):
                raise UserError(
                    f"--model.templates: those of '{task}' are {prompts}, but each prompt must "
                    "hold {} once, for the class"
                )
        self._last: tuple[str, PreTrainedModel] | None = None
        self._texts: dict[tuple[str, tuple[str, ...]], Tensor] = {}

    def read(
        self,
        source: str,
        task: str,
        labels: Sequence[str] | None = None,
        fresh_head: bool = False,
    ) -> ClipNetwork:
        """Reads a vision tower, and makes the head of a task from its class names.

        Args:
            source: A whole model, a vision tower that was saved alone, with or without its
                projection, or a Lightning ``.ckpt`` of a fit.
            task: The task.
            labels: The task's class names in order; without them the network cannot be run.
            fresh_head: Ignored: no head is trained.

        Returns:
            The network, in float32 on the CPU.

        Raises:
            UserError: If it cannot be read, or there is no text tower.
        """
        if labels and kind_of(labels) != "classes":
            raise UserError(
                f"task '{task}': its answers are no classes, but ClipClassifier has no others; "
                "give --model ImageClassifier"
            )
        state: Mapping[str, Tensor] = {}
        path = self.path
        if is_lightning(source):
            fitted, state = fitted_tower(source, task)
            path = path or fitted
        elif is_tower(source):
            state = load_tower(source)
        elif path is None or path == source:
            path = source
        else:
            whole = load_clip(source)
            state = {n: t for n, t in whole.state_dict().items() if n.startswith(_PARTS)}
        if path is None:
            raise UserError(
                f"{source}: is a vision tower without its texts; give the whole model that it was "
                "made from as --model.path"
            )
        texts = None if labels is None else self._text_features(path, task, labels)
        network = ClipNetwork(self._whole(path), source, labels or [], texts)
        _load(network, state, source)
        return network

    def _whole(self, path: str) -> "PreTrainedModel":
        if self._last is None or self._last[0] != path:
            self._last = (path, load_clip(path))
        return self._last[1]

    def _text_features(self, path: str, task: str, labels: Sequence[str]) -> Tensor:
        """V (c, d), by the text tower of a whole model."""
        names = self.class_texts.get(task) or [label.replace("_", " ") for label in labels]
        if len(names) != len(labels):
            raise UserError(
                f"--model.class_texts: has {len(names)} texts for '{task}', which has "
                f"{len(labels)} classes: {known(labels)}"
            )
        prompts = self.templates.get(task, [TEMPLATE])
        features = torch.stack([
            F.normalize(self._features(path, [prompt.replace("{}", name) for name in names]), dim=1)
            for prompt in prompts
        ])
        return F.normalize(features.mean(dim=0), dim=1)

    def _features(self, path: str, texts: Sequence[str]) -> Tensor:
        key = (path, tuple(texts))
        if key not in self._texts:
            whole: Any = self._whole(path)
            tokenizer = load_tokenizer(path)
            # SigLIP was trained on texts of full length; CLIP does not look behind a text's end
            tokens = tokenizer(
                list(texts),
                padding="max_length",
                truncation=True,
                max_length=whole.config.text_config.max_position_embeddings,
                return_tensors="pt",
            )
            with torch.no_grad():
                self._texts[key] = whole.get_text_features(**tokens).pooler_output
        return self._texts[key]

    def body(self, model: nn.Module) -> Params:
        """Selects the vision tower and its projection.

        Args:
            model: A network that ``read`` gave.

        Returns:
            All its parameters, sharing its memory.
        """
        return params_of(model)

    def adopt(self, models: Mapping[str, Any], tokenizer: Any) -> None:
        """Adopts networks of one architecture: the tower of the first one, the texts of all.

        Args:
            models: Task name to network.
            tokenizer: The image processor they share, or task name to that of each.
        """
        self._last = None  # a text tower takes memory
        super().adopt(models, tokenizer)

    def share(self, model: Any, first: Any) -> None:
        """Gives a network the vision tower of the first one, and its projection.

        Args:
            model: The network.
            first: The first task's network.
        """
        for part in _PARTS:
            setattr(model, part, getattr(first, part))

    def save(self, folder: Path, cards: Mapping[str, str] | None = None) -> None:
        """Writes one whole model of images and texts, with the live vision tower.

        Args:
            folder: Where.
            cards: Task name to the model card of its folder; the first is taken.
        """
        task, network = next(iter(self.models.items()))
        path = self.path or str(network.name_or_path)
        whole: Any = load_clip(path)
        for part in _PARTS:
            if hasattr(whole, part):
                getattr(whole, part).load_state_dict(getattr(network, part).state_dict())
        processor = load_clip_processor(path)
        processor.image_processor = self.preprocessor_of(task)
        form = self.forms.get(task) or self.forms.get("", SavedForm())
        card = None if cards is None else {"": next(iter(cards.values()))}
        save_models(folder, {"": whole}, {"": processor}, card, {"": form})


def _load(network: ClipNetwork, state: Mapping[str, Tensor], source: str) -> None:
    own = network.state_dict()
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            found = tuple(own[name].shape) if name in own else "no such tensor"
            raise UserError(
                f"{source}: tensor '{name}' is {tuple(tensor.shape)}, but {found} in the whole "
                "model; give the one that it was made from as --model.path"
            )
    lacking = [n for n in own if state and n not in state and n.startswith("vision_model.")]
    if lacking:
        raise UserError(f"{source}: tensor '{lacking[0]}' is missing")
    network.load_state_dict(state, strict=False)
