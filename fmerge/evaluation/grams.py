"""An expert's Gram matrices on its task, through a public pass of the Trainer."""

from fmerge.evaluation.evaluator import Evaluator, silent
from fmerge.evaluation.memory import in_memory
from fmerge.fisher import FisherSettings
from fmerge.methods import Grams
from fmerge.modules import GramPass, TaskModule
from fmerge.params import Params


def grams_of(
    evaluator: Evaluator, module: TaskModule, task: str, settings: FisherSettings, body: Params
) -> Grams:
    """Sums up what enters a body's linear layers on a task's examples.

    Args:
        evaluator: Runs the pass.
        module: The live module.
        task: The task.
        settings: Which examples; the rest of it is of Fishers alone.
        body: The body.

    Returns:
        Grams by the name of the weight, on the CPU.
    """
    evaluator.write_body(body)

    def whole() -> Grams:
        one = GramPass(module, task)
        data = evaluator.data
        loader = data.loaders(settings.split, [task], settings.examples, settings.seed)[task]
        with silent(evaluator.trainer):
            evaluator.trainer.predict(one, dataloaders=loader, return_predictions=False)
        return one.grams

    return in_memory(evaluator.trainer, evaluator.data, whole)
