"""Image models of a few hundred weights, folders of a few images, and the processor of both."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    CLIPConfig,
    ConvNextConfig,
    ResNetConfig,
    SiglipConfig,
    SwinConfig,
    ViTConfig,
)

from tests.tiny import SPECIAL, WORDS, moved_near, text_tokenizer

LABELS = {"colour": ["blue", "green", "red"], "shade": ["dark", "light"]}
SIZE = 8
"""Height and width of the models' inputs; the images are a little larger."""


@dataclass(frozen=True)
class Zoo:
    """Paths of a base, two experts and two tasks.

    Attributes:
        root: The folder of it all.
        base: A Hugging Face folder.
        experts: Task name to a Hugging Face folder.
        tasks: Task name to split to a folder of folders of images.
    """

    root: Path
    base: str
    experts: dict[str, str]
    tasks: dict[str, dict[str, str]]


def named(labels):
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def vit_config(labels=("a", "b", "c"), **options):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 12, "image_size": SIZE, "patch_size": 4}  # fmt: skip
    return ViTConfig(**(small | named(labels) | options))


def resnet_config(labels=("a", "b", "c")):
    return ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", **named(labels)
    )


def convnext_config(labels=("a", "b", "c")):
    return ConvNextConfig(
        hidden_sizes=[4, 8], depths=[1, 1], patch_size=2, image_size=SIZE, num_stages=2,
        **named(labels),
    )  # fmt: skip


def swin_config(labels=("a", "b", "c")):
    return SwinConfig(
        image_size=SIZE, patch_size=2, embed_dim=4, depths=[1, 1], num_heads=[1, 2],
        window_size=2, **named(labels),
    )  # fmt: skip


def siglip_config(labels=("a", "b", "c")):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 12}  # fmt: skip
    return SiglipConfig(
        vision_config={**small, "image_size": SIZE, "patch_size": 4},
        text_config={**small, "vocab_size": 20},
        **named(labels),
    )


def classifier(config, seed=0, scale=0.3):
    """A classifier with weights large enough that no gradient is negligible."""
    config.architectures = None
    torch.manual_seed(seed)
    model = AutoModelForImageClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(scale * torch.randn_like(buffer))
            if name.endswith("running_var"):
                buffer.add_(torch.rand_like(buffer))
    return model.eval()


def clip(kind, seed=0, image_size=SIZE, scale=0.3):
    """A model of images and texts."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 12, "projection_dim": 6}  # fmt: skip
    texts = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 16,
             "bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
    made = {"clip": CLIPConfig, "siglip": SiglipConfig}[kind](
        vision_config={**small, "image_size": image_size, "patch_size": 4},
        text_config={**small, **texts},
    )
    if kind == "clip":
        made.projection_dim = 6
    torch.manual_seed(seed)
    model = AutoModel.from_config(made)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        model.logit_scale.fill_(1.0)
    return model.eval()


def save_clip(folder: Path, kind, seed=0) -> str:
    model = clip(kind, seed)
    model.save_pretrained(folder)
    text_tokenizer().save_pretrained(folder)
    write_processor(folder)
    return str(folder)


def save(model, folder: Path) -> str:
    model.save_pretrained(folder)
    write_processor(folder)
    return str(folder)


def write_processor(folder: Path, **options) -> None:
    own = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.2, 0.3],
    }
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(own | options))


def pictures(n: int, seed: int, classes: int) -> list[Image.Image]:
    """Noise around a colour or a shade of the image's class, which is its number modulo classes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(n):
        noise = torch.randint(0, 90, (11, 10, 3), generator=generator)
        if classes == 2:
            noise += 120 * (i % 2)
        else:
            noise[..., 2 - i % 3] += 120
        found.append(Image.fromarray(noise.to(torch.uint8).numpy()))
    return found


def write_folder(folder: Path, labels, n: int, seed: int) -> str:
    for i, picture in enumerate(pictures(n, seed, len(labels))):
        own = folder / labels[i % len(labels)]
        own.mkdir(parents=True, exist_ok=True)
        picture.save(own / f"{i:02}.png")
    return str(folder)


def make_zoo(root: Path, config=vit_config) -> Zoo:
    base = classifier(config(), seed=1)
    experts, tasks = {}, {}
    for k, (task, labels) in enumerate(LABELS.items()):
        own = classifier(config(labels), seed=10 + k)
        experts[task] = save(moved_near(own, base), root / f"expert_{task}")
        tasks[task] = {
            split: write_folder(root / task / split, labels, n, seed=100 * k + i)
            for i, (split, n) in enumerate({"train": 9, "validation": 7, "test": 5}.items())
        }
    return Zoo(root, save(base, root / "base"), experts, tasks)
