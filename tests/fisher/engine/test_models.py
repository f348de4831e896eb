"""Models of what is merged today: convolutions, batch norm, experts, subclasses of layers."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    ConvNextConfig,
    FalconConfig,
    MambaConfig,
    MixtralConfig,
    RegNetConfig,
    ResNetConfig,
)

from fmerge.fisher import estimate_fisher
from tests.compare import assert_same
from tests.fisher.cases import SMALL, N, classifier, definition, padded, scaled

IMAGES = {"embedding_size": 4, "hidden_sizes": [4, 6, 8, 8], "depths": [1, 1, 1, 1]}


def falcon():
    return classifier(
        FalconConfig(**SMALL | {"num_hidden_layers": 1}, new_decoder_architecture=False, bias=True)
    )


def mixtral():
    """Eager, as the grouped products of transformers know no float64."""
    options = {"num_key_value_heads": 1, "num_local_experts": 4, "num_hidden_layers": 1}
    config = MixtralConfig(**SMALL | options)
    config._experts_implementation = "eager"
    return classifier(config)


def mamba():
    config = MambaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4, pad_token_id=0
    )
    torch.manual_seed(0)
    model = scaled(AutoModelForCausalLM.from_config(config))
    batch = {**padded(width=5), "labels": torch.arange(N) % 3}

    def log_probs(batch):
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        last = logits[torch.arange(len(ids)), mask.sum(1) - 1]
        return last[:, :3].log_softmax(1)

    return model, batch, log_probs


def images(config):
    torch.manual_seed(0)
    model = scaled(AutoModelForImageClassification.from_config(config))
    for name, buffer in model.named_buffers():  # statistics that are not those of a new model
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            buffer.normal_()
    batch = {"x": torch.randn(N, 3, 32, 32, dtype=torch.float64), "labels": torch.arange(N) % 3}
    return model, batch, lambda batch: model(pixel_values=batch["x"]).logits.log_softmax(1)


def resnet():
    return images(ResNetConfig(**IMAGES, layer_type="basic", num_labels=3))


def regnet():
    return images(RegNetConfig(**IMAGES, groups_width=2, num_labels=3))


def convnext():
    sizes = {"hidden_sizes": [4, 6, 8, 8], "depths": [1, 1, 1, 1]}
    return images(ConvNextConfig(**sizes, layer_scale_init_value=0.5, num_labels=3))


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in (mamba, resnet, regnet, convnext)]


@pytest.mark.parametrize("case", [falcon, mixtral, *SLOW])
def test_rules_cover_every_parameter_exactly(case):
    model, batch, log_probs = case()
    found = estimate_fisher(model, [batch], log_probs, fallback="error").values
    expected = definition(model, batch, log_probs)
    rounding = 1e-12 * max(float(value.max()) for value in expected.values())
    assert_same(found, expected, atol=rounding)


@pytest.mark.slow
def test_grouped_products_give_the_fisher_of_eager_ones():
    """What transformers runs by itself where nothing is recorded: in float32."""
    model, batch, log_probs = mixtral()
    expected = definition(model, batch, log_probs)
    model.float().set_experts_implementation("grouped_mm")
    found = estimate_fisher(model, [batch], log_probs, fallback="error").values
    for name, value in expected.items():
        error = float((found[name] - value).norm() / value.norm().clamp_min(1e-12))
        assert error < 1e-3, (name, error)
