"""The models of the benchmarks, with a batch and ℓ each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    DebertaV2Config,
    FalconConfig,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
    ResNetConfig,
    T5Config,
    T5ForConditionalGeneration,
)

Batch = dict[str, Tensor]
LogProbs = Callable[[Batch], Tensor]

FEW = 2  # examples for the oracle and for slow contestants


@dataclass(frozen=True)
class Settings:
    """Sizes to measure; None stands for each case's own size."""

    device: str = "cpu"
    precision: str = "32-true"
    batch: int | None = None
    tokens: int | None = None

    def autocast(self) -> torch.autocast:
        """Returns the context that contestants run in."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16-mixed")


@dataclass
class Case:
    """A model, a batch and ℓ."""

    name: str
    model: nn.Module
    batch: Batch
    build: Callable[[nn.Module], LogProbs]

    def __post_init__(self) -> None:
        self.log_probs = self.build(self.model)

    def few(self) -> Batch:
        """Returns the first examples."""
        return {key: value[:FEW] for key, value in self.batch.items()}

    def to(self, device: str) -> "Case":
        """Moves the model and the batch."""
        self.model.to(device)
        self.batch = {key: value.to(device) for key, value in self.batch.items()}
        return self


def minilm(n: int = 16, t: int = 64) -> Case:
    """MiniLM's size: 6 layers of 384, 3 labels."""
    torch.manual_seed(0)
    config = BertConfig(  # type: ignore[call-arg]
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        vocab_size=30522,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(1000, 20000, (n, t))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.arange(n) % 3,
    }
    return Case(f"MiniLM, {n} x {t}", model, batch, classifier_log_probs)


def classifier_log_probs(model: nn.Module) -> LogProbs:
    """Log-probabilities of a classifier's labels (n, c)."""

    def log_probs(batch: Batch) -> Tensor:
        mask = batch.get("attention_mask")
        result: Tensor = model(input_ids=batch["input_ids"], attention_mask=mask).logits
        return result.log_softmax(1)

    return log_probs


def t5(n: int = 16, t: int = 64) -> Case:
    """The size of t5-small, its embedding tied, to answers of 8 tokens."""
    return text_to_text("t5-small", n, t, width=512, layers=6)


def t5_base(n: int = 64, t: int = 128) -> Case:
    """The size of t5-base, its embedding tied, to answers of 8 tokens."""
    return text_to_text("t5-base", n, t, width=768, layers=12)


def text_to_text(name: str, n: int, t: int, width: int, layers: int) -> Case:
    """A T5 of heads of 64 and feed-forward layers four times as wide."""
    torch.manual_seed(0)
    config = T5Config(  # type: ignore[call-arg]
        d_model=width,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=width // 64,
        d_kv=64,
        vocab_size=32128,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config).eval()
    ids = torch.randint(1, 32000, (n, t))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "targets": torch.randint(1, 32000, (n, 8)),
        "labels": torch.zeros(n, dtype=torch.long),
    }
    return Case(f"{name}, {n} x {t} to 8", model, batch, answer_log_probs)


def answer_log_probs(model: nn.Module) -> LogProbs:
    """Length-normalised log-likelihood of one answer each (n, 1)."""

    def log_probs(batch: Batch) -> Tensor:
        logits: Tensor = model(
            input_ids=batch["input_ids"],
            attention_mask=batch.get("attention_mask"),
            labels=batch["targets"],
        ).logits
        tokens = logits.log_softmax(-1).gather(-1, batch["targets"][..., None])
        return tokens.squeeze(-1).mean(1, keepdim=True)

    return log_probs


SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 512,
    "vocab_size": 8000,
    "pad_token_id": 0,
    "num_labels": 3,
}
"""A text model of a few million weights, as the kinds below are."""


def texts(name: str, model: nn.Module, n: int, t: int, build: Callable[..., LogProbs]) -> Case:
    """Texts of t tokens and less."""
    ids = torch.randint(1, 8000, (n, t))
    mask = (torch.arange(t) < torch.randint(t // 2, t + 1, (n, 1)).clamp(max=t)).long()
    batch = {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(n) % 3}
    return Case(f"{name}, {n} x {t}", model, batch, build)


def text_kind(name: str, config: PretrainedConfig, n: int, t: int) -> Case:
    """A classifier of texts."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    return texts(name, model, n, t, classifier_log_probs)


def deberta(n: int = 16, t: int = 64) -> Case:
    """DeBERTa-v2 with the relative attention of DeBERTa-v3: 512 rows of relative positions."""
    config = DebertaV2Config(  # type: ignore[call-arg]
        **SMALL,  # type: ignore[arg-type]
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=256,
        position_biased_input=False,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
    )
    return text_kind("DeBERTa-v2", config, n, t)


def falcon(n: int = 16, t: int = 64) -> Case:
    """Falcon, whose linear layers are a class of their own."""
    return text_kind("Falcon", FalconConfig(**SMALL), n, t)  # type: ignore[arg-type]


def mixtral(n: int = 16, t: int = 64) -> Case:
    """Mixtral with eight experts, of which each token is sent to two."""
    config = MixtralConfig(**SMALL, num_key_value_heads=4, num_local_experts=8)  # type: ignore[arg-type]
    case = text_kind("Mixtral", config, n, t)
    return Case(case.name, case.model, case.batch, experts_log_probs)


def experts_log_probs(model: nn.Module) -> LogProbs:
    """A classifier's; in float64 eager, as the grouped products of transformers do not know it."""
    if next(model.parameters()).dtype == torch.float64:
        model.set_experts_implementation("eager")  # type: ignore[operator]
    return classifier_log_probs(model)


def mamba(n: int = 16, t: int = 64) -> Case:
    """Mamba, by three candidates for the token after the last."""
    torch.manual_seed(0)
    sizes = {name: SMALL[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
    model = AutoModelForCausalLM.from_config(MambaConfig(**sizes)).eval()  # type: ignore[arg-type]
    return texts("Mamba", model, n, t, next_log_probs)


def next_log_probs(model: nn.Module) -> LogProbs:
    """Log-probabilities of three next tokens among themselves (n, 3)."""

    def log_probs(batch: Batch) -> Tensor:
        mask = batch.get("attention_mask")
        logits: Tensor = model(
            input_ids=batch["input_ids"], attention_mask=mask, use_cache=False, logits_to_keep=1
        ).logits
        return logits[:, -1, :3].log_softmax(1)

    return log_probs


def image_kind(name: str, config: PretrainedConfig, n: int, side: int) -> Case:
    """A classifier of images."""
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(config).eval()
    batch = {"pixel_values": torch.randn(n, 3, side, side), "labels": torch.arange(n) % 3}

    def build(model: nn.Module) -> LogProbs:
        dtype = next(model.parameters()).dtype

        def log_probs(batch: Batch) -> Tensor:
            result: Tensor = model(pixel_values=batch["pixel_values"].to(dtype)).logits
            return result.log_softmax(1)

        return log_probs

    return Case(f"{name}, {n} x {side}²", model, batch, build)


def convnext(n: int = 16, t: int = 64) -> Case:
    """ConvNeXt on images of t by t pixels: depthwise kernels of 7 by 7."""
    sizes = {"hidden_sizes": [48, 96, 192, 384], "depths": [1, 1, 3, 1]}
    return image_kind("ConvNeXt", ConvNextConfig(**sizes, num_labels=3), n, t)  # type: ignore[arg-type, call-arg]


def resnet(n: int = 16, t: int = 64) -> Case:
    """ResNet-18's layout on images of t by t pixels."""
    sizes = {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2]}
    config = ResNetConfig(**sizes, layer_type="basic", num_labels=3)  # type: ignore[arg-type, call-arg]
    return image_kind("ResNet", config, n, t)


CASES = {
    "minilm": minilm,
    "t5": t5,
    "t5-base": t5_base,
    "deberta": deberta,
    "falcon": falcon,
    "mixtral": mixtral,
    "mamba": mamba,
    "convnext": convnext,
    "resnet": resnet,
}


def make(key: str, settings: Settings) -> Case:
    """Makes a case of the given sizes on the given device."""
    sizes = {"n": settings.batch, "t": settings.tokens}
    given = {name: size for name, size in sizes.items() if size is not None}
    return CASES[key](**given).to(settings.device)
