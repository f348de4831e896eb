"""Experts, their data and a live module, and scores of their merges."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_up
from families import FAMILIES, FOLDER, expert, quiet_trainer
from lightning.pytorch import seed_everything

from fmerge.data import MultiTask, Prompted, TaskData
from fmerge.evaluation.calibration import Calibration, calibrate
from fmerge.evaluation.evaluator import Evaluator, mean
from fmerge.evaluation.head_refit import Refitter, Refitting
from fmerge.fisher import FisherSettings
from fmerge.merging.assembler import Assembler
from fmerge.merging.expert_fishers import Expert
from fmerge.merging.experts import Ensemble, load_ensemble
from fmerge.methods import Average, MergeMethod
from fmerge.methods.calibrated import Calibrated
from fmerge.modules import Bodies, RankChoice, SharedBody, TaskModule
from fmerge.params import Params, fingerprint
from fmerge.search import Search, SearchSpace, Trial
from fmerge.store import write_text
from fmerge.store.atomic import replacing_folder

REFIT = 80
"""Training examples of each task that heads are refitted on."""


class Subject:
    """Experts and their tasks, with passes that score their merges.

    Args:
        module: The module that takes their weights.
        data: Their tasks.
        experts: Their folders by task.
        base: The folder of the model that they were trained from.
    """

    def __init__(
        self, module: TaskModule, data: MultiTask, experts: Mapping[str, Path], base: str
    ) -> None:
        self.module, self.data = module, data
        whole = {task: Expert(str(path)) for task, path in experts.items()}
        self.ensemble: Ensemble = load_ensemble(whole, base, Average(), module, data.labels)
        module.adopt(self.ensemble.models, self.ensemble.tokenizer)
        self.evaluator = Evaluator(quiet_trainer(), module, data)
        self._fishers: dict[tuple[str, FisherSettings, str], Params] = {}

    @property
    def base(self) -> Params:
        """The base's body."""
        assert self.ensemble.base is not None  # load_ensemble was given one
        return self.ensemble.base

    def assembler(
        self,
        method: MergeMethod,
        settings: FisherSettings,
        parts: Mapping[str, Sequence[str]] | None = None,
    ) -> Assembler:
        """Prepares merges.

        Args:
            method: The formula.
            settings: How its Fishers are estimated, and the examples of its Grams.
            parts: Groups of tensors with coefficients of their own.

        Returns:
            The assembler.
        """
        bodies = self.ensemble.bodies

        fisher = self.fisher_of(settings)
        statistics: dict[str, Any] | None = None
        if method.statistic == "fisher":
            statistics = {name: fisher(name, body) for name, body in bodies.items()}
        if method.statistic == "gram":
            evaluator = self.evaluator
            statistics = {
                name: evaluator.grams(name, settings, body) for name, body in bodies.items()
            }
        curve = settings.curve if method.statistic == "moving fisher" else 0
        finish = self.finish_of(method, settings)
        return Assembler(
            *(method, self.base, bodies, fisher, statistics, parts),
            curve_nodes=curve,
            finish=finish,
        )

    def finish_of(
        self, method: MergeMethod, settings: FisherSettings
    ) -> Callable[[Params], Params] | None:
        """Prepares what follows the formula.

        Args:
            method: The formula.
            settings: The examples of a calibration.

        Returns:
            The calibration of a merged body; None where the method makes none.
        """
        if not isinstance(method, Calibrated):
            return None
        bodies = self.ensemble.bodies
        calibration = Calibration(method, settings, {name: name for name in bodies})
        return lambda body: calibrate(self.evaluator, calibration, Bodies(body, self.base, bodies))

    def fisher_of(self, settings: FisherSettings) -> Callable[[str, Params], Params]:
        """Prepares Fishers; methods that need the same Fisher share it.

        Args:
            settings: How they are estimated.

        Returns:
            A function from a task and a body to the Fisher.
        """

        def fisher(name: str, body: Params) -> Params:
            key = name, replace(settings, curve=0), fingerprint(body)
            if key not in self._fishers:
                values = self.evaluator.fisher(name, settings, body).values
                self._fishers[key] = {one: values[one] for one in body}
            return self._fishers[key]

        return fisher


class Bench(Subject):
    """One family at one seed; trains the experts that are missing.

    Args:
        name: The family.
        seed: Of the split, the training and the examples of statistics and refitted heads.
    """

    module: SharedBody

    def __init__(self, name: str, seed: int) -> None:
        family, self.seed = FAMILIES[name], seed
        self.folder = FOLDER / name / str(seed)
        experts = {task: expert(name, task, seed) for task in family.tasks}
        seed_everything(seed, verbose=False)
        data = MultiTask({task: make(seed) for task, make in family.tasks.items()}, batch_size=32)
        super().__init__(family.start.module(), data, experts, str(family.start.folder))

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Reads a cached row, or computes and caches it.

        Args:
            name: The row.
            compute: Makes it.

        Returns:
            The row.
        """
        path = self.folder / "rows" / f"{name.replace(' ', '_').replace(',', '')}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_text(path, json.dumps(compute()))
            print(f"{self.folder.parent.name} {self.seed} {name}", file=sys.stderr, flush=True)
        row: dict[str, Any] = json.loads(path.read_text())
        return row

    def tested(self, bodies: Mapping[str, Params]) -> dict[str, Any]:
        """Scores bodies on the test splits, with the experts' heads and with refitted ones.

        Args:
            bodies: The body of each task.

        Returns:
            The means over the tasks, and the scores by task.
        """
        old: dict[str, float] = {}
        refitted: dict[str, float] = {}
        for task, body in bodies.items():
            settings = Refitting("end", examples=REFIT, seed=self.seed)
            refitter = Refitter(self.evaluator, settings, [task])
            refitted |= refitter.score(body, "test", refitter.fit(body))
            old |= self.evaluator.score(body, "test", [task])
        tasks = {"old": old, "refitted": refitted}
        return {"old": mean(old), "refitted": mean(refitted), "tasks": tasks}

    def alone(self) -> dict[str, Any]:
        """Tests the experts, each on its own task."""
        return self.tested(self.ensemble.bodies)

    def merged(self, body: Params) -> dict[str, Any]:
        """Tests one body on all tasks."""
        return self.tested(dict.fromkeys(self.ensemble.names, body))

    def search(self, assembler: Assembler, search: Search) -> dict[str, Any]:
        """Searches a method's coefficients by validation scores and tests the best merge.

        Args:
            assembler: Assembles merges.
            search: The search.

        Returns:
            The row.
        """
        names = self.ensemble.names
        search.start(SearchSpace(names, scale_invariant=assembler.method.scale_invariant))
        while not search.finished:
            point = search.ask()
            metrics = self.evaluator.score(assembler.assemble(point), "validation", names)
            search.tell(Trial(len(search.history), point, mean(metrics), metrics))
        best = search.best()
        row = self.merged(assembler.assemble(best.coefficients))
        trials = [[dict(one.coefficients), one.objective] for one in search.history]
        return {**row, "coefficients": dict(best.coefficients), "trials": trials}


def tiny_t5(steps: int = 250, rate: float = 3e-3) -> Subject:
    """Loads the made-up tasks' experts; if missing, trains them in a minute and a half.

    Args:
        steps: Training steps of an expert.
        rate: Its learning rate.

    Returns:
        The subject.
    """
    folder = FOLDER / f"t5_{steps}_{rate}"
    if not folder.exists():
        with replacing_folder(folder) as temporary:
            made_up.make(temporary, steps, rate)
    tasks: dict[str, TaskData] = {
        task: Prompted(
            splits={split: str(folder / f"{task}_{split}.jsonl") for split in made_up.SIZES},
            text=task + " : {{ things }}",
            choices=list(answers),
            label="{{ answer }}",
        )
        for task, answers in made_up.TASKS.items()
    }
    experts = {task: folder / task / "expert" for task in tasks}
    data = MultiTask(tasks, batch_size=64)
    return Subject(RankChoice(), data, experts, str(folder / "base" / "expert"))
