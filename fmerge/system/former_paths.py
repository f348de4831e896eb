"""Former import paths, whose import names the new one."""

import sys

FORMER = {
    "fmerge.batch_sizes": "fmerge.evaluation.batch_size",
    "fmerge.conclusion": "fmerge.runs.conclude",
    "fmerge.data.hidden_test": "fmerge.data.validation_as_test",
    "fmerge.dry_run": "fmerge.runs.dry_run",
    "fmerge.experts": "fmerge.merging.experts",
    "fmerge.fisher.check": "fmerge.fisher.engine.self_check",
    "fmerge.fisher.fallback": "fmerge.fisher.engine.per_example",
    "fmerge.fisher.kernel": "fmerge.fisher.engine.triton_kernel",
    "fmerge.fisher.origins": "fmerge.fisher.engine.index_map",
    "fmerge.fisher.recording": "fmerge.fisher.engine.recorder",
    "fmerge.fisher.rules": "fmerge.fisher.engine.rules",
    "fmerge.fisher.sketch": "fmerge.fisher.engine.sketch",
    "fmerge.fisher.spread": "fmerge.fisher.standard_error",
    "fmerge.fisher.squares": "fmerge.fisher.engine.squares",
    "fmerge.fisher.terms": "fmerge.fisher.engine.gradients",
    "fmerge.fisher.tracing": "fmerge.fisher.engine.tracer",
    "fmerge.fisher.unbatched": "fmerge.fisher.engine.tracked_tensor",
    "fmerge.fisher.uses": "fmerge.fisher.engine.parameter_uses",
    "fmerge.fisher_curve": "fmerge.fisher.curve",
    "fmerge.fisher_facts": "fmerge.fisher.summary",
    "fmerge.fisher_run": "fmerge.runs.fisher",
    "fmerge.fit_run": "fmerge.runs.fit",
    "fmerge.front": "fmerge.search.pareto",
    "fmerge.given": "fmerge.runs.inputs",
    "fmerge.grams": "fmerge.evaluation.statistics",
    "fmerge.grouping": "fmerge.search.parameter_groups",
    "fmerge.interrupts": "fmerge.system.signals",
    "fmerge.intervals": "fmerge.report.confidence",
    "fmerge.kinship": "fmerge.merging.compatibility",
    "fmerge.markdown": "fmerge.report.markdown",
    "fmerge.measured": "fmerge.runs.timing",
    "fmerge.memory": "fmerge.evaluation.batch_size",
    "fmerge.merge_run": "fmerge.runs.merge",
    "fmerge.merger": "fmerge.merging.assembler",
    "fmerge.methods.magnitudes": "fmerge.methods.pruning",
    "fmerge.methods.streaming": "fmerge.methods.elementwise",
    "fmerge.model_card": "fmerge.report.model_card",
    "fmerge.modules.accumulate": "fmerge.modules.fisher_pass",
    "fmerge.modules.grams": "fmerge.modules.gram_pass",
    "fmerge.modules.head_inputs": "fmerge.modules.feature_pass",
    "fmerge.modules.outcomes": "fmerge.modules.prediction_recorder",
    "fmerge.modules.positions": "fmerge.modules.token_masks",
    "fmerge.modules.prompts": "fmerge.modules.truncation",
    "fmerge.objective": "fmerge.search.objective",
    "fmerge.pareto": "fmerge.report.pareto_front",
    "fmerge.parser": "fmerge.cli.parser",
    "fmerge.picture": "fmerge.report.plots",
    "fmerge.processes": "fmerge.system.watchdog",
    "fmerge.racing": "fmerge.merging.racing",
    "fmerge.refit": "fmerge.evaluation.head_refit",
    "fmerge.report_html": "fmerge.report.html",
    "fmerge.requeue": "fmerge.system.slurm",
    "fmerge.rows": "fmerge.report.scores",
    "fmerge.score_table": "fmerge.report.score_table",
    "fmerge.search.bayes": "fmerge.search.ax_search",
    "fmerge.search.compass": "fmerge.search.coordinate_search",
    "fmerge.search.starts": "fmerge.search.initial_points",
    "fmerge.sections": "fmerge.report.sections",
    "fmerge.shown": "fmerge.report.write",
    "fmerge.splits": "fmerge.runs.data_provenance",
    "fmerge.stopping": "fmerge.search.early_stopping",
    "fmerge.store.fishers": "fmerge.store.fisher_files",
    "fmerge.store.moments": "fmerge.store.adam_moments",
    "fmerge.store.runs": "fmerge.store.run_folder",
    "fmerge.store.shelf": "fmerge.store.fisher_cache",
    "fmerge.tested": "fmerge.evaluation.test_scores",
    "fmerge.search.unbeaten": "fmerge.search.base",
}
"""Modules of the version before to where they are now."""


class FormerPaths:
    """A finder that is asked for modules that no other finder has found."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        """Names the new path of a module that was moved.

        Args:
            name: The module's full name.
            path: Where its package is; part of the protocol of finders.
            target: A module to reload; part of the protocol of finders.

        Raises:
            ModuleNotFoundError: If the module was moved.
        """
        if name in FORMER:
            message = f"No module named '{name}': it is {FORMER[name]} now"
            raise ModuleNotFoundError(message, name=name)


def install() -> None:
    """Adds the finder behind all others, once."""
    if FormerPaths not in sys.meta_path:
        sys.meta_path.append(FormerPaths)
