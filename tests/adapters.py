"""Adapters that peft itself makes and merges: the oracle of everything that reads or writes one."""

import json
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from tests import tiny

CLASSIFIER, CAUSAL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"


def read(kind, base, **options):
    return getattr(transformers, kind).from_pretrained(base, dtype=torch.float32, **options).eval()


def wrapped(kind, base, options=None, **lora):
    """A base with a new adapter, to be trained."""
    with warnings.catch_warnings():  # of what transformers deprecates
        warnings.simplefilter("ignore")
        return get_peft_model(read(kind, base, **(options or {})), LoraConfig(**lora))


def make_adapter(base, folder: Path, seed=0, kind=CLASSIFIER, options=None, **lora):
    """Saves an adapter of random numbers on a base; gives what peft merges into the base."""
    model = wrapped(kind, base, options, **lora)
    # a message on tied weights, and others that a user would heed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                scale = 0.05 if "lora_magnitude" in name else 0.1
                parameter.data += scale * torch.randn_like(parameter)
        model.save_pretrained(folder)
        return opened(folder, kind, base, options)


def opened(folder, kind=CLASSIFIER, base=None, options=None, merge=True):
    """Reads an adapter by peft, onto the base that its config names."""
    base = (
        base
        or json.loads((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(read(kind, base, **(options or {})), folder)
        return model.merge_and_unload().eval() if merge else model.eval()


def causal_base(folder: Path, config, seed=1) -> str:
    tiny.language_model(config, seed).save_pretrained(folder)
    tiny.text_tokenizer().save_pretrained(folder)
    return str(folder)
