"""Tiny models of every layout, a padded batch of eight examples for each, and ℓ of both.

The batch is as wide as it is long, so that no dimension can be told by its size.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForConditionalGeneration,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
)

from tests import oracle, tiny

N = 8
VOCABULARY = 20


def scaled(model, seed=0, scale=0.3):
    """Weights large enough that no gradient is negligible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.double().eval()


def cut(batch, start, stop):
    return {key: value[start:stop] for key, value in batch.items()}


def split(batch, size):
    return [cut(batch, i, min(N, i + size)) for i in range(0, N, size)]


def definition(model, batch, log_probs):
    def exact(values, n):
        return values.exp() / values.exp().sum()

    values, _ = oracle.fisher(model, split(batch, 1), log_probs, exact)
    shapes = dict(model.named_parameters())
    return {name: value + torch.zeros_like(shapes[name]) for name, value in values.items()}


def padded(n=N, width=N, seed=0, pad=0):
    """Token ids of different lengths, the longest as wide as all."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (n, width), generator=generator)
    lengths = torch.randint(2, width + 1, (n,), generator=generator)
    lengths[0] = width
    mask = (torch.arange(width) < lengths[:, None]).long()
    return {"input_ids": ids.where(mask.bool(), pad), "attention_mask": mask}


def classifier(config):
    torch.manual_seed(0)
    model = scaled(AutoModelForSequenceClassification.from_config(config))
    batch = {**padded(pad=config.pad_token_id), "labels": torch.arange(N) % 3}

    def log_probs(batch):
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return model(**inputs).logits.log_softmax(1)

    return model, batch, log_probs


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
    "num_labels": 3,
}


def bert():
    return classifier(tiny.bert_config(vocab_size=VOCABULARY, hidden_size=12))


def roberta():
    return classifier(RobertaConfig(**SMALL | {"pad_token_id": 1}))


def distilbert():
    return classifier(
        DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=12,
            n_layers=2,
            n_heads=2,
            hidden_dim=16,
            max_position_embeddings=24,
            num_labels=3,
        )
    )


def albert():
    return classifier(AlbertConfig(**SMALL, embedding_size=6))


def deberta():
    return classifier(
        DebertaV2Config(
            **SMALL,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_buckets=4,
            position_biased_input=False,
        )
    )


def gpt2():
    return classifier(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=12,
            n_layer=2,
            n_head=2,
            n_positions=24,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            num_labels=3,
        )
    )


def llama():
    return classifier(LlamaConfig(**SMALL, num_key_value_heads=1))


def qwen2():
    return classifier(Qwen2Config(**SMALL, num_key_value_heads=1))


def sequence_log_likelihood(logits, targets):
    """(1/T) Σₜ log p(yₜ), targets (r, t) with −100 where there is none."""
    present = targets != -100
    tokens = targets.where(present, 0)[..., None]
    values = logits.log_softmax(-1).gather(-1, tokens)[..., 0]
    return (values * present).sum(1) / present.sum(1).clamp_min(1)


def answers(n=N, candidates=3, width=4, seed=1):
    """Targets (n, c, t), the last candidate of every second example missing."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(3, VOCABULARY, (n, candidates, width), generator=generator)
    targets[:, 0, -1] = -100
    targets[::2, -1] = -100
    return targets


def text_to_text(model, interleaved):
    """ℓ of several answers, the encoder run once: its rows repeated in place or as a whole."""
    model = scaled(model)
    batch = {**padded(), "targets": answers(), "labels": torch.arange(N) % 2}

    def log_probs(batch):
        inputs, mask = batch["input_ids"], batch["attention_mask"]
        states = model.get_encoder()(input_ids=inputs, attention_mask=mask).last_hidden_state
        targets = batch["targets"] if interleaved else batch["targets"].transpose(0, 1)
        first, second = targets.shape[:2]
        rows = targets.flatten(0, 1)
        if interleaved:
            states, mask = (value.repeat_interleave(second, 0) for value in (states, mask))
        else:
            states, mask = states.repeat(first, 1, 1), mask.repeat(first, 1)
        logits = model(
            encoder_outputs=(states,),
            attention_mask=mask,
            decoder_input_ids=F.pad(rows.clamp_min(0)[:, :-1], (1, 0)),
        ).logits
        values = sequence_log_likelihood(logits, rows).view(first, second)
        values = values if interleaved else values.T
        return values.masked_fill((batch["targets"] == -100).all(-1), -torch.inf)

    return model, batch, log_probs


def t5_config(**options):
    return T5Config(
        vocab_size=VOCABULARY,
        d_model=12,
        d_ff=16,
        d_kv=6,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        pad_token_id=0,
        decoder_start_token_id=0,
        **options,
    )


def t5_tied():
    torch.manual_seed(0)
    return text_to_text(T5ForConditionalGeneration(t5_config()), interleaved=True)


def t5_gated_untied():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(t5_config(feed_forward_proj="gated-gelu"))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return text_to_text(model, interleaved=False)


def bart():
    torch.manual_seed(0)
    model = scaled(
        BartForConditionalGeneration(
            BartConfig(
                vocab_size=VOCABULARY,
                d_model=12,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                max_position_embeddings=24,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=2,
            )
        )
    )
    batch = {**padded(), "targets": answers()[:, 0], "labels": torch.zeros(N, dtype=torch.long)}

    def log_probs(batch):
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=F.pad(batch["targets"].clamp_min(0)[:, :-1], (1, 0), value=2),
        ).logits
        return sequence_log_likelihood(logits, batch["targets"])[:, None]

    return model, batch, log_probs


def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        num_labels=3,
    )
    model = scaled(AutoModelForImageClassification.from_config(config))
    images = torch.randn(
        N, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    batch = {"pixel_values": images, "labels": torch.arange(N) % 3}

    def log_probs(batch):
        return model(pixel_values=batch["pixel_values"]).logits.log_softmax(1)

    return model, batch, log_probs


class Bilinear(nn.Module):
    """A layer that no rule knows, beside an embedding whose table is read behind its back."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.form = nn.Parameter(torch.zeros(6, 6))
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, ids, mask):
        hidden = self.embedding(ids) * self.scale
        hidden = torch.einsum("nti,ij,ntj->nti", hidden, self.form, hidden).tanh()
        seen = F.linear(hidden, self.embedding.weight).softmax(-1) @ self.embedding.weight
        pooled = ((hidden + seen) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.head(pooled).log_softmax(1)


def custom():
    torch.manual_seed(0)
    model = scaled(Bilinear())
    batch = {**padded(), "labels": torch.arange(N) % 3}
    return model, batch, lambda batch: model(batch["input_ids"], batch["attention_mask"])


CASES = {
    case.__name__: case
    for case in (
        bert,
        roberta,
        distilbert,
        albert,
        deberta,
        gpt2,
        llama,
        qwen2,
        t5_tied,
        t5_gated_untied,
        bart,
        vit,
        custom,
    )
}
