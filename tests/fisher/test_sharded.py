"""The Fisher of a model that FSDP2 splits over processes is that of the whole model."""

import ctypes
import gc
import math
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5ForConditionalGeneration,
)

from fmerge.fisher import FisherAccumulator, estimate_fisher
from fmerge.fisher.sharded import ShardedAccumulator
from fmerge.modules.sharding import shard
from tests import tiny
from tests.compare import relative_error

EXAMPLES = 13


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        config = BertConfig(
            **{"vocab_size": 20, "hidden_size": 12, "num_hidden_layers": 2, "num_labels": 3},
            **{"num_attention_heads": 2, "intermediate_size": 14, "max_position_embeddings": 8},
        )
        self.network = BertForSequenceClassification(config)

    def label_log_probs(self, batch):
        return self.network(batch["ids"], batch["mask"]).logits.log_softmax(-1)


class GPT2(nn.Module):
    """Its output layer is the table of its embeddings."""

    def __init__(self):
        super().__init__()
        config = GPT2Config(
            **{"vocab_size": 20, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 8},
            **{"bos_token_id": 0, "eos_token_id": 0},
        )
        self.network = GPT2LMHeadModel(config)

    def label_log_probs(self, batch):
        logits = self.network(batch["ids"], attention_mask=batch["mask"]).logits.log_softmax(-1)
        return torch.stack([logits[:, 2, 3] + logits[:, 3, 4], logits[:, 3, 7]], dim=1)


class T5(nn.Module):
    """Its encoder is called by itself, and passes its position bias from block to block."""

    def __init__(self):
        super().__init__()
        self.network = T5ForConditionalGeneration(tiny.t5_config())

    def label_log_probs(self, batch):
        encoded = self.network.get_encoder()(batch["ids"], attention_mask=batch["mask"])
        given = {"encoder_outputs": encoded, "labels": batch["ids"][:, :2].contiguous()}
        logits = self.network(**given, attention_mask=batch["mask"]).logits.log_softmax(-1)
        return torch.stack([logits[:, 0, 3] + logits[:, 1, 4], logits[:, 0, 5] / 2], dim=1)


KINDS = {"BERT": Bert, "GPT-2": GPT2, "T5": T5}


def made(kind):
    torch.manual_seed(0)
    module = KINDS[kind]().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def batches(rank=0, processes=1, size=4, examples=EXAMPLES):
    """A process's batches, and the places of their examples in the whole pass."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 20, (EXAMPLES, 6), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::3, 4:] = 0
    own = range(rank, examples, processes)
    for places in (list(own[i : i + size]) for i in range(0, len(own), size)):
        batch = {"ids": ids[places], "mask": mask[places], "labels": ids[places, 0] % 2}
        yield batch, places


def whole(kind, estimator="exact", examples=EXAMPLES):
    """Example by example, without rules."""
    module = made(kind)
    singles = [one for one, _ in batches(size=1, examples=examples)]
    return estimate_fisher(module.network, singles, module.label_log_probs, estimator).values


def accumulated(kind, estimator="exact", rank=0, processes=1, extra=0, examples=EXAMPLES):
    module = made(kind)
    shard(module, init_device_mesh("cpu", (processes,)))
    found = ShardedAccumulator(module, module.network, module.label_log_probs, estimator, samples=3)
    own = list(batches(rank, processes, examples=examples))
    steps = math.ceil(math.ceil(examples / processes) / 4) + extra
    for step in range(steps):
        batch, places = own[min(step, len(own) - 1)]
        found.add(batch, places, counted=step < len(own))
    return found


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/x", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("BERT", "T5")]


@pytest.mark.parametrize("kind", ["GPT-2", *SLOW])
def test_one_process_has_all_shares(alone, kind):
    """The last batch is one example, and one more batch does not count."""
    found = accumulated(kind, extra=1, examples=5)
    assert found.count == 5 and not found._engine.uncovered
    assert relative_error(found.estimate().values, whole(kind, examples=5)) < 1e-6


def worker(rank, processes, port, kind, estimator, file):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=processes)
    found = accumulated(kind, estimator, rank, processes)
    assert found.count == len(range(rank, EXAMPLES, processes))
    held = sum(value.numel() for value in found.sums.values())
    found.count = EXAMPLES
    values = found.estimate().values
    torch.save((values, held), f"{file}{rank}")
    distributed.destroy_process_group()


def of_processes(processes, *arguments, run=worker):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    made = [
        context.Process(target=run, args=(rank, processes, port, *arguments))
        for rank in range(processes)
    ]
    for process in made:
        process.start()
    for process in made:
        process.join()
        assert process.exitcode == 0


class Uncovered(nn.Module):
    """A layer without a rule, whose parameter meets the batch in a way that none covers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def label_log_probs(self, batch):
        scores = torch.linalg.solve(self.weight, batch["x"].mT).mT
        return scores.log_softmax(-1)


def test_what_no_rule_covers_is_named(alone):
    module = Uncovered()
    shard(module, init_device_mesh("cpu", (1,)))
    found = ShardedAccumulator(module, module, module.label_log_probs)
    with pytest.raises(ValueError, match="no rule covers every use of the parameters weight"):
        found.add({"x": torch.randn(4, 3)})


def test_signs_of_a_whole_batch(alone):
    """rademacher runs plain backward passes, whose squares are shared out likewise."""
    batch, places = next(iter(batches()))
    module = made("GPT-2")
    expected = FisherAccumulator(module.network, module.label_log_probs, "rademacher", samples=3)
    expected.add(batch, places)
    shard(module, init_device_mesh("cpu", (1,)))
    given = module, module.network, module.label_log_probs
    found = ShardedAccumulator(*given, "rademacher", samples=3)
    found.add(batch, places)
    assert relative_error(found.estimate().values, expected.estimate().values) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_processes_gives_the_fisher_of_one(
    tmp_path, kind, processes, record_property
):
    of_processes(processes, kind, "exact", tmp_path / "rank")
    values, _ = torch.load(tmp_path / "rank0")
    expected = whole(kind)
    error = relative_error(values, expected)
    assert error < 1e-6
    total, held = sum(value.numel() for value in expected.values()), 0
    for rank in range(processes):
        others, own = torch.load(tmp_path / f"rank{rank}")
        held += own
        assert rank == 0 or others == {}
        assert own < 1.2 * total / processes  # but for rows that cannot be divided
    assert held == total
    record_property(
        "figure", f"Fisher of {kind} on {processes} processes, FSDP2: relative error {error:.1e}"
    )


class Deep(GPT2):
    """Twelve blocks of 0.8 million parameters each, and next to nothing else."""

    def __init__(self):
        nn.Module.__init__(self)
        config = GPT2Config(
            **{"vocab_size": 20, "n_embd": 256, "n_layer": 12, "n_head": 2, "n_positions": 8},
            **{"bos_token_id": 0, "eos_token_id": 0},
        )
        self.network = GPT2LMHeadModel(config)


def megabytes(key):
    """A line of the process's status, such as the most memory it has had."""
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if key in one]
    return int(line.split()[1]) / 1024


def release():
    """Gives what was freed back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def peak(rank, processes, port, file):
    """The memory that the model and its Fisher take at most, once the model is split."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=processes)
    ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: large tensors are freed at once
    accumulated("GPT-2", "empirical", rank, processes)  # imports, and buffers of connections
    release()
    before = megabytes("VmRSS")
    module = Deep().eval()
    shard(module, init_device_mesh("cpu", (processes,)))
    release()
    Path("/proc/self/clear_refs").write_text("5")  # and the most begins anew
    found = ShardedAccumulator(module, module.network, module.label_log_probs, "empirical")
    found.add(*next(iter(batches(rank, processes, size=2))))
    Path(f"{file}{rank}").write_text(str(megabytes("VmHWM") - before))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_the_peak_of_memory_falls_with_the_number_of_processes(tmp_path, record_property):
    found = []
    for processes in (1, 2, 3):
        of_processes(processes, tmp_path / f"{processes}of", run=peak)
        own = [float((tmp_path / f"{processes}of{rank}").read_text()) for rank in range(processes)]
        found.append(max(own))
    shown = ", ".join(f"{one:.0f}" for one in found)
    record_property("figure", f"peak of 1, 2 and 3 processes, 38 MB of weights: {shown} MB")
    assert found[1] < 0.75 * found[0] and found[2] < 0.85 * found[1], found
