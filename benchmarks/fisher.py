"""Time, peak memory and correctness of Fishers, against other ways to compute them.

Run:  python benchmarks/fisher.py [--models minilm t5] [--rounds 7] [--threads 2] [--no-memory]

All contestants take turns in one process, so that other work on the machine meets them all.
Peak memory is measured in a process of its own for each: the highest resident size during two
batches minus that before them, so it includes the sums, gradients and activations.
"""

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from fmerge.fisher import FisherAccumulator

Batch = dict[str, Tensor]
Fisher = dict[str, Tensor]
LogProbs = Callable[[Batch], Tensor]

N = 16
FEW = 2  # examples of the comparison with the oracle, and of the slow contestants' turns


@dataclass
class Case:
    """A model, a batch and ℓ."""

    name: str
    model: nn.Module
    batch: Batch
    log_probs: LogProbs

    def few(self) -> Batch:
        """Gives the first examples alone."""
        return {key: value[:FEW] for key, value in self.batch.items()}


@dataclass
class Contestant:
    """A way to a Fisher: from a batch to the sum of its examples' squares, and its share."""

    run: Callable[[Batch], Fisher | None]
    few: bool = False
    compared: bool = True


def minilm() -> Case:
    """MiniLM's size: 6 layers of 384, 3 labels, 16 examples of 64 tokens."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        vocab_size=30522,
        num_labels=3,
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(1000, 20000, (N, 64))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.arange(N) % 3,
    }
    return Case("MiniLM, 16 x 64", model, batch, classifier_log_probs(model))


def classifier_log_probs(model: nn.Module) -> LogProbs:
    """Log-probabilities of a classifier's labels (n, c)."""

    def log_probs(batch: Batch) -> Tensor:
        mask = batch.get("attention_mask")
        result: Tensor = model(input_ids=batch["input_ids"], attention_mask=mask).logits
        return result.log_softmax(1)

    return log_probs


def t5() -> Case:
    """The size of t5-small, its embedding tied: 16 examples of 64 to 8 tokens."""
    torch.manual_seed(0)
    config = T5Config(
        d_model=512,
        d_ff=2048,
        num_layers=6,
        num_heads=8,
        d_kv=64,
        vocab_size=32128,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config).eval()
    ids = torch.randint(1, 32000, (N, 64))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "targets": torch.randint(1, 32000, (N, 8)),
        "labels": torch.zeros(N, dtype=torch.long),
    }
    return Case("t5-small, 16 x 64 to 8", model, batch, answer_log_probs(model))


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


CASES = {"minilm": minilm, "t5": t5}


def contestants(case: Case) -> dict[str, Contestant]:
    """Lists the contestants, the training step first."""
    model, log_probs = case.model, case.log_probs

    def plain(batch: Batch) -> None:
        model.zero_grad(set_to_none=True)
        log_probs(batch).gather(1, batch["labels"][:, None]).sum().backward()
        model.zero_grad(set_to_none=True)

    found = {"forward + backward": Contestant(plain, compared=False)}
    classes = log_probs(case.few()).shape[1]
    estimators: list[tuple[str, Any]] = [("empirical", "empirical"), ("sampled(1)", "sampled")]
    estimators += [(f"exact, {classes} candidates", "exact")] if classes > 1 else []
    estimators += [("rademacher(1)", "rademacher")]
    for name, estimator in estimators:
        random = estimator in {"sampled", "rademacher"}
        found[f"fmerge {name}"] = Contestant(ours(model, log_probs, estimator), compared=not random)
    found["loop at batch size 1"] = Contestant(
        lambda batch: loop(model, log_probs, batch, "empirical"), few=True
    )
    found["torch.func vmap"] = Contestant(lambda batch: vmap(model, log_probs, batch), few=True)
    found["opacus GradSampleModule"] = Contestant(lambda batch: opacus(case, batch), few=True)
    found["BackPACK SumGradSquared"] = Contestant(lambda batch: backpack(case, batch), few=True)
    return found


def ours(model: nn.Module, log_probs: LogProbs, estimator: Any) -> Callable[[Batch], Fisher]:
    """One accumulator for all turns, as in a pass over data."""
    accumulator = FisherAccumulator(model, log_probs, estimator)

    def run(batch: Batch) -> Fisher:
        for total in accumulator.sums.values():
            total.zero_()
        accumulator.add(batch)
        return accumulator.sums

    return run


def loop(model: nn.Module, log_probs: LogProbs, batch: Batch, estimator: str) -> Fisher:
    """The definition, example by example."""
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for i in range(len(batch["labels"])):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        classes = log_probs(one).shape[1] if estimator == "exact" else 1
        for k in range(classes):
            model.zero_grad(set_to_none=True)
            values = log_probs(one)[0]
            c = k if estimator == "exact" else int(one["labels"][0])
            values[c].backward()
            weight = float(values[c].detach().exp()) if estimator == "exact" else 1.0
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    sums[name].addcmul_(parameter.grad, parameter.grad, value=weight)
    model.zero_grad(set_to_none=True)
    return sums


def vmap(model: nn.Module, log_probs: LogProbs, batch: Batch) -> Fisher:
    """All examples' gradients at once; without a mask, whose contents models look at."""
    holder = nn.Module()
    holder.model = model
    holder.forward = log_probs  # type: ignore[method-assign, assignment]
    weights = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    columns = {key: value for key, value in batch.items() if key != "attention_mask"}

    def value(weights: Fisher, one: Batch) -> Tensor:
        rows = {key: row[None] for key, row in one.items()}
        result: Tensor = torch.func.functional_call(holder, weights, (rows,))
        return result.gather(1, rows["labels"][:, None]).sum()

    gradients = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))(weights, columns)
    return {name.removeprefix("model."): g.square_().sum(0) for name, g in gradients.items()}


def opacus(case: Case, batch: Batch) -> Fisher:
    """Opacus' per-example gradients of the whole model, squared and added."""
    from opacus import GradSampleModule  # noqa: I001  optional

    model = copy.deepcopy(case.model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    wrapped = GradSampleModule(model, loss_reduction="sum", strict=False)
    builder = classifier_log_probs if case.name.startswith("MiniLM") else answer_log_probs
    builder(wrapped)(batch).gather(1, batch["labels"][:, None]).sum().backward()
    n = len(batch["labels"])
    sums = {}
    for name, parameter in model.named_parameters():
        grads = getattr(parameter, "grad_sample", None)
        if isinstance(grads, list):
            grads = torch.stack(grads).sum(0)
        if grads is None or len(grads) != n:
            raise ValueError(f"no per-example gradient of {name}")
        sums[name] = grads.square().sum(0)
    return sums


def backpack(case: Case, batch: Batch) -> Fisher:
    """BackPACK's SumGradSquared."""
    from backpack import backpack as extension, extend, extensions  # noqa: I001  optional

    model = extend(copy.deepcopy(case.model), use_converter=True)
    builder = classifier_log_probs if case.name.startswith("MiniLM") else answer_log_probs
    with extension(extensions.SumGradSquared()):
        builder(model)(batch).gather(1, batch["labels"][:, None]).sum().backward()
    return {name: p.sum_grad_squared for name, p in model.named_parameters()}


def error(found: Fisher, expected: Fisher) -> float:
    """‖found − expected‖₁ / ‖expected‖₁ over all parameters."""
    difference = sum(float((found[k].double() - expected[k]).abs().sum()) for k in expected)
    return difference / sum(float(value.sum()) for value in expected.values())


def errors(case: Case, found: dict[str, Contestant]) -> dict[str, str]:
    """Compares the contestants, in float32, with a float64 loop, on a few examples."""
    wide = copy.deepcopy(case.model).double()
    builder = classifier_log_probs if case.name.startswith("MiniLM") else answer_log_probs
    few, truths, cells = case.few(), {}, {}
    for name, contestant in list(found.items()):
        kind = "exact" if "exact" in name else "empirical"
        if kind not in truths and contestant.compared:
            truths[kind] = loop(wide, builder(wide), few, kind)
        try:
            result = contestant.run(few)
            compared = contestant.compared and result is not None
            cells[name] = f"{error(result, truths[kind]):.0e}" if compared and result else "-"
        except Exception as reason:  # a row of the table says which contestant cannot do it
            cells[name] = f"{type(reason).__name__}: {str(reason).strip().splitlines()[0][:60]}"
            del found[name]
    return cells


def times(
    case: Case, found: dict[str, Contestant], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Lets the contestants take turns; seconds per example, by the clock and of processors."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, contestant in found.items():
            if contestant.few and turn > max(2, rounds // 3):
                continue
            batch = case.few() if contestant.few else case.batch
            start = time.perf_counter(), time.process_time()
            contestant.run(batch)
            if turn:  # the first turn warms up, and is where a kind of batch is checked
                ends, n = (time.perf_counter(), time.process_time()), len(batch["labels"])
                taken[name].append(((ends[0] - start[0]) / n, (ends[1] - start[1]) / n))
    return taken


def peak(case_name: str, contestant_name: str, threads: int) -> float:
    """Runs one contestant alone: highest resident size minus that at the start, in MiB."""
    torch.set_num_threads(threads)
    case = CASES[case_name]()
    contestant = contestants(case)[contestant_name]
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the highest resident size
    before = status("VmRSS")
    for _ in range(2):
        contestant.run(case.few() if contestant.few else case.batch)
    return (status("VmHWM") - before) / 1024


def status(field: str) -> int:
    """Reads a size in KiB of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))


def table(key: str, rounds: int, memory: bool) -> Table:
    """Measures one case."""
    case = CASES[key]()
    found = contestants(case)
    cells = errors(case, found)
    taken = times(case, found, rounds)
    result = Table(title=f"{case.name}, {torch.get_num_threads()} threads, {rounds} rounds")
    headings = ("ms/example", "spread", "of plain's speed", "by CPU time", "peak MiB", "error")
    result.add_column("")
    for heading in headings:
        result.add_column(heading, justify="right")
    plain = [statistics.median(column) for column in zip(*taken["forward + backward"], strict=True)]
    for name, cell in cells.items():
        if name not in found:
            result.add_row(name, "-", "-", "-", "-", "-", cell)
            continue
        clock, processors = (list(column) for column in zip(*taken[name], strict=True))
        medians = statistics.median(clock), statistics.median(processors)
        spread = f"{1e3 * min(clock):.1f} - {1e3 * max(clock):.1f}"
        ratios = [f"{base / median:.2f}" for base, median in zip(plain, medians, strict=True)]
        size = "-"
        if memory:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                size = f"{pool.apply(peak, (key, name, torch.get_num_threads())):.0f}"
            size += f" ({FEW} at once)" if found[name].few else ""
        result.add_row(name, f"{1e3 * medians[0]:.1f}", spread, *ratios, size, cell)
    return result


def main() -> None:
    """Prints one table per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for key in arguments.models:
        Console(width=130).print(table(key, arguments.rounds, not arguments.no_memory))


if __name__ == "__main__":
    main()
