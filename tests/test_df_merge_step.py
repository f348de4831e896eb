"""One trial of DF-Merge on a T5 with three tasks, against a loop of the formula."""

import copy

import torch
from transformers import AutoModelForSeq2SeqLM

from fmerge.data import MultiTask, TaskData
from fmerge.evaluation.evaluator import Evaluator
from fmerge.fisher import FisherSettings
from fmerge.merging.assembler import Assembler
from fmerge.merging.optimizer import MergeOptimizer
from fmerge.merging.pool import InProcess
from fmerge.methods import DFMerge
from fmerge.modules import RankChoice
from fmerge.search import Fixed, SearchSpace
from fmerge.search.objective import Objective
from fmerge.trainer import FMergeTrainer
from tests import oracle, tiny
from tests.compare import assert_same

COEFFICIENTS = {"one": 0.35, "two": 0.6, "three": 0.15}
COUNTS = {"one": [2, 2, 2, 2, 2], "two": [3, 5, 2, 8], "three": [4, 4, 3, 2, 2, 6]}


class Choices(TaskData):
    """Prompts of many lengths with 2 to 8 choices; the same examples in every split."""

    labels = []

    def __init__(self, counts, seed):
        prompts = tiny.sentences(len(counts), seed)
        self.rows = [
            {
                "text": prompt,
                "choices": tiny.sentences(count, seed + i + 1),
                "label": (i * 7) % count,
            }
            for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
        ]

    def examples(self, split):
        return self.rows


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_one_step_is_the_formula_and_its_objective_is_exact(record_property):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(tiny.t5_config()).double().eval()
    base = {name: value + 0.2 * torch.randn_like(value) for name, value in weights(model).items()}
    experts = {
        task: {name: value + 0.3 * torch.randn_like(value) for name, value in base.items()}
        for task in COEFFICIENTS
    }
    tokenizer = tiny.text_tokenizer()
    tasks = {task: Choices(counts, 10 * k) for k, (task, counts) in enumerate(COUNTS.items())}
    settings = FisherSettings(split="validation", examples=4)

    trainer = FMergeTrainer(
        accelerator="cpu", precision="64-true", logger=False, enable_progress_bar=False
    )
    module = RankChoice()
    module.adopt(dict.fromkeys(tasks, copy.deepcopy(model)), tokenizer)
    data = MultiTask(tasks, batch_size=3)
    evaluator = Evaluator(trainer, module, data)
    assembler = Assembler(
        DFMerge(),
        base,
        experts,
        lambda task, body: evaluator.fisher(task, settings, body).values,
    )
    search = Fixed(COEFFICIENTS)
    search.start(SearchSpace(list(COEFFICIENTS)))

    def score(body):
        return Objective().of(evaluator.score(body, "validation", list(tasks)), {})

    trial = MergeOptimizer().optimize(trainer, search, InProcess(assembler, score), id)
    found = assembler.assemble(COEFFICIENTS)

    chosen = {
        task: list(data.loaders("validation", [task], 4)[task].dataset.examples) for task in tasks
    }
    assert all(len(examples) == 4 for examples in chosen.values())
    expected, accuracies = oracle.df_merge_step(
        model,
        tokenizer,
        base,
        experts,
        COEFFICIENTS,
        chosen,
        {task: one.rows for task, one in tasks.items()},
    )
    assert all(value.dtype == torch.float64 for value in found.values())
    assert_same(found, expected)
    # to the last digit of the float32 that torchmetrics gives
    single = {
        task: float(torch.tensor(one, dtype=torch.float32)) for task, one in accuracies.items()
    }
    assert trial.metrics == single
    assert trial.objective == sum(single.values()) / 3
    moved = max(float((expected[name] - base[name]).abs().max()) for name in base)
    assert moved > 0.1 and 0 < trial.objective < 1
    figure = f"one DF-Merge step of a T5 with 3 tasks: objective {trial.objective:.4f}"
    record_property("figure", figure)
