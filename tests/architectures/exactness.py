"""A model's Fisher by fmerge against a loop over one example at a time, in float64."""

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fmerge import estimate_fisher
from tests import oracle, tiny
from tests.compare import TOLERANCE

TEXTS = tiny.sentences(6, seed=3)
CHOICES = ["red cat", "blue", "one two three"]


class Narrowings(TorchDispatchMode):
    """Notes whether a module turns float64 into a narrower dtype on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if (
            function is torch.ops.aten._to_copy.default
            and args[0].dtype == torch.float64
            and args[0].numel() > 1
            and output.dtype in (torch.float32, torch.bfloat16, torch.float16)
        ):
            self.found = True
        return output


def examples(kind: str) -> list[dict[str, Any]]:
    """Six examples of a task, of several lengths."""
    more = {} if kind == "classifier" else {"choices": CHOICES}
    return [{"text": text, "label": i % 3, **more} for i, text in enumerate(TEXTS)]


def own_log_probs(kind: str, module: Any, example: Mapping[str, Any]) -> torch.Tensor:
    """ℓ (1, c) of one example by transformers' forward pass alone: no padding, no cache."""
    model, tokenizer = module.task_model("one"), module.tokenizer
    prompt = tokenizer(example["text"])["input_ids"]
    if kind == "classifier":
        return model(input_ids=torch.tensor([prompt])).logits.log_softmax(1)
    values = []
    for choice in example["choices"]:
        if kind == "seq2seq":
            answer = tokenizer(text_target=choice)["input_ids"]
            starts = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
            if shift := getattr(model, "prepare_decoder_input_ids_from_labels", None):
                starts = shift(labels=torch.tensor([answer]))  # in training, some wrap around
            logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=starts).logits[0]
        else:
            end = [tokenizer.eos_token_id]
            answer = tokenizer(choice, add_special_tokens=False)["input_ids"] + end
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]
        terms = [logits[t].log_softmax(0)[token] for t, token in enumerate(answer)]
        values.append(torch.stack(terms).mean())
    return torch.stack(values)[None]


@contextmanager
def in_float64(module: Any):
    """The module in float64, and in float32 again."""
    try:
        yield module.double().eval()
    finally:
        module.float()


def compare(kind: str, module: Any) -> tuple[float, bool]:
    """Compares Fishers.

    Returns:
        The worst |F − F*| / (rtol |F*| + atol max F*), at most 1 where they are the same, and
        whether the model itself computes in float64 throughout.
    """
    rows = examples(kind)
    with in_float64(module):
        model = module.task_model("one")
        narrowings = Narrowings()
        with torch.no_grad(), narrowings:
            own_log_probs(kind, module, rows[0])
        found = estimate_fisher(
            model, [module.collate(rows[:4], "one"), module.collate(rows[4:], "one")],
            module.label_log_probs,
        ).values  # fmt: skip
        expected, _ = oracle.fisher(
            model,
            rows,
            lambda row: own_log_probs(kind, module, row),
            lambda log_probs, n: log_probs.softmax(0),
        )
    return worst(found, expected), not narrowings.found


def worst(found: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> float:
    """The largest difference in units of the tolerance that all tests share."""
    relative, absolute = TOLERANCE[torch.float64]
    whole = {
        name: torch.as_tensor(value).expand(found[name].shape) for name, value in expected.items()
    }
    assert whole.keys() == found.keys()
    scale = max(float(value.abs().max()) for value in whole.values() if value.numel())
    units = [
        float(((found[name] - value).abs() / (relative * value.abs() + absolute * scale)).max())
        for name, value in whole.items()
        if value.numel()
    ]
    return max(units)
