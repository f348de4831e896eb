"""Writes an untrained vision transformer for images of 8 × 8 pixels, with its image processor.

Run:  python benchmarks/digits.py --output FOLDER
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import ViTConfig, ViTModel

WIDTH = 64


def write_untrained(folder: Path, seed: int = 0) -> None:
    """Writes the model, unless it exists.

    Args:
        folder: Where.
        seed: Of its weights.
    """
    if (folder / "config.json").exists():
        return
    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": False,
        "size": {"height": 8, "width": 8},
        "image_mean": [0.3] * 3,
        "image_std": [0.4] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    write_untrained(parser.parse_args().output)
