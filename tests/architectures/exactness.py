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
            # with a cache FSMT takes the decoder's inputs for one next token, without a mask
            given = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": starts}
            logits = model(**given, use_cache=False).logits[0]
        else:
            end = [tokenizer.eos_token_id]
            answer = tokenizer(choice, add_special_tokens=False)["input_ids"] + end
            whole = model(input_ids=torch.tensor([prompt + answer]), use_cache=False)
            logits = whole.logits[0, len(prompt) - 1 :]
        terms = [logits[t].log_softmax(0)[token] for t, token in enumerate(answer)]
        values.append(torch.stack(terms).mean())
    return torch.stack(values)[None]


@contextmanager
def in_dtype(module: Any, dtype: torch.dtype):
    """The module in another dtype, and in float32 again."""
    try:
        yield module.to(dtype).eval()
    finally:
        module.float()


def alone(kind: str, module: Any, rows: list[dict[str, Any]]) -> list[torch.Tensor]:
    """ℓ (c,) of each example alone."""
    with torch.no_grad():
        return [own_log_probs(kind, module, row)[0] for row in rows]


def is_stable(kind: str, module: Any, rows: list[dict[str, Any]]) -> bool:
    """Whether the model itself gives numbers, and gradients that are numbers, padded too."""
    try:
        log_probs = own_log_probs(kind, module, rows[0])
        padded = module.label_log_probs(module.collate(rows, "one"))
        (log_probs.sum() + padded.sum()).backward()
    except RuntimeError:  # of mixed dtypes
        return False
    gradients = [one.grad for one in module.parameters() if one.grad is not None]
    module.zero_grad()
    return all(bool(torch.isfinite(one).all()) for one in [log_probs, padded, *gradients])


def batches_of(kind: str, module: Any) -> tuple[list[list[dict[str, Any]]], bool]:
    """Batches of several lengths, or of one where the model's answers depend on padding.

    Returns:
        The examples by batch, and whether padding changes an answer.
    """
    rows = examples(kind)
    with torch.no_grad():
        padded = module.label_log_probs(module.collate(rows[:4], "one"))
    change = (padded - torch.stack(alone(kind, module, rows[:4]))).abs().max()
    if float(change) <= (1e-9 if padded.dtype == torch.float64 else 1e-5):
        return [rows[:4], rows[4:]], False
    by_length: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        length = len(module.tokenizer(row["text"])["input_ids"])
        by_length.setdefault(length, []).append(row)
    return list(by_length.values()), True


def compare(kind: str, module: Any) -> str:
    """Compares a Fisher with the loop's.

    Returns:
        The table's cell.
    """
    with in_dtype(module, torch.float64):
        if is_stable(kind, module, examples(kind)):
            narrowings = Narrowings()
            with narrowings:
                alone(kind, module, examples(kind)[:1])
            return _compared(kind, module, torch.float64, narrowings.found)
    return _compared(kind, module.eval(), torch.float32, True)


def _compared(kind: str, module: Any, dtype: torch.dtype, narrow: bool) -> str:
    batches, depends = batches_of(kind, module)
    model = module.task_model("one")
    collated = [module.collate(rows, "one") for rows in batches]
    found = estimate_fisher(model, collated, module.label_log_probs).values
    expected, _ = oracle.fisher(
        model,
        [row for rows in batches for row in rows],
        lambda row: own_log_probs(kind, module, row),
        lambda log_probs, n: log_probs.softmax(0),
    )
    excess = worst(found, expected, dtype)
    unpadded = ", unpadded" if depends else ""
    if excess <= 1:
        return "exact" + (" in float32" if dtype == torch.float32 else "") + unpadded
    return f"{'float32' if narrow else 'differs'}: {excess:.2g} times the tolerance{unpadded}"


def worst(
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, Any],
    dtype: torch.dtype = torch.float64,
) -> float:
    """The largest difference in units of the tolerance that all tests share."""
    relative, absolute = TOLERANCE[dtype]
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
