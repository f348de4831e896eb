"""Cost of a step that learns coefficients, in plain training steps.

Run:  python benchmarks/learned.py [--steps 10] [--batch 32] [--tokens 24] [--experts 3]

A text classifier of MiniLM's size (6 layers, 384 features, random weights) for each expert. Both
steps run one forward and one backward pass of each task's batch. A plain step then takes one of
AdamW on all weights; a learned one first assembles the merge of task arithmetic, and then takes the
inner products with all task vectors, and a step of Adam on λ. The fastest of the steps counts.
"""

import argparse
import time
from collections.abc import Callable

import torch
from transformers import BertConfig, BertForSequenceClassification

from fmerge.merging.assembler import Assembler
from fmerge.merging.learnable import Coefficients, LearnedGroups, learned_groups
from fmerge.methods import TaskArithmetic

CLASSES = 4


class Step:
    """Experts, their batches, and both kinds of step.

    Args:
        experts: How many there are.
        batch: Examples of a task.
        tokens: Tokens of an example.
        groups: What has coefficients of its own.
    """

    def __init__(self, experts: int, batch: int, tokens: int, groups: LearnedGroups) -> None:
        torch.manual_seed(0)
        config = BertConfig(  # type: ignore[call-arg]
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
            num_labels=CLASSES, vocab_size=30_522,
        )  # fmt: skip
        self.model = BertForSequenceClassification(config)
        self.model.train(False)
        prefix = "bert."
        self.body = {n: p for n, p in self.model.named_parameters() if n.startswith(prefix)}
        base = {name: one.detach().clone() for name, one in self.body.items()}
        names = [f"expert{m}" for m in range(experts)]
        bodies = {
            name: {key: one + 0.01 * torch.randn_like(one) for key, one in base.items()}
            for name in names
        }
        parts = learned_groups(list(base), groups)
        assembler = Assembler(TaskArithmetic(), base, bodies, lambda name, body: {}, parts=parts)
        start = {f"{name}/{group}": 1 / experts for name in names for group in parts}
        self.learnable = Coefficients(assembler, start, self.body, {}, 0.01, 0.01)
        self.adam = torch.optim.Adam(self.learnable.groups())
        self.adamw = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.batches = [
            (torch.randint(config.vocab_size, (batch, tokens)), torch.randint(CLASSES, (batch,)))
            for _ in names
        ]

    def plain(self) -> None:
        """One step of AdamW on all weights."""
        self.adamw.zero_grad()
        for ids, labels in self.batches:
            self.model(input_ids=ids, labels=labels).loss.backward()
        self.adamw.step()

    def learned(self) -> None:
        """One step of Adam on λ."""
        self.learnable.write()
        leaves = self.learnable.leaves()
        total: list[torch.Tensor | None] = [None] * len(leaves)
        for ids, labels in self.batches:
            loss = self.model(input_ids=ids, labels=labels).loss
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            pairs = zip(total, found, strict=True)
            total = [b if a is None else a if b is None else a + b for a, b in pairs]
        with torch.no_grad():
            self.learnable.values.grad = self.learnable.pull_back(total)["values"]
        self.adam.step()


def fastest(step: Callable[[], None], steps: int) -> float:
    """Times a step.

    Args:
        step: The step.
        steps: How often, after one that warms up.

    Returns:
        Seconds of the fastest.
    """
    step()
    seconds = []
    for _ in range(steps):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def main() -> None:
    """Prints the seconds of both steps, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("steps", 10), ("batch", 32), ("tokens", 24), ("experts", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    groups: tuple[LearnedGroups, ...] = ("layers", "tensors")
    for one in groups:
        step = Step(given.experts, given.batch, given.tokens, one)
        plain, learned = fastest(step.plain, given.steps), fastest(step.learned, given.steps)
        print(f"{one}: plain {plain:.3f} s, learned {learned:.3f} s, ratio {learned / plain:.2f}")


if __name__ == "__main__":
    main()
