"""Modules that have moved. An import of the old name fails, and its message says the new one."""

from importlib.machinery import ModuleSpec  # of the standard library: the package itself loads nothing else

MOVED = {
    "data.oracle.cost": "data.oracle.world.cost",
    "data.oracle.enumeration": "data.oracle.truth.enumeration",
    "data.oracle.estimators": "data.oracle.study.estimators",
    "data.oracle.exact_cost": "data.oracle.truth.exact_cost",
    "data.oracle.grammar": "data.oracle.world.grammar",
    "data.oracle.imitation": "data.oracle.study.imitation",
    "data.oracle.language": "data.oracle.world.language",
    "data.oracle.measure": "data.oracle.truth.measure",
    "data.oracle.optimum": "data.oracle.truth.optimum",
    "data.oracle.plots": "data.oracle.study.plots",
    "data.oracle.population": "data.oracle.truth.population",
    "data.oracle.provenance": "data.oracle.study.provenance",
    "data.oracle.reference_table": "data.oracle.truth.reference_table",
    "data.oracle.report": "data.oracle.study.report",
    "data.oracle.sources": "data.oracle.world.sources",
    "data.oracle.tradeoff": "data.oracle.study.tradeoff",
    "data.oracle.workers": "data.oracle.study.workers",
    "lit_safe.answers": "lit_safe.rollouts.answers",
    "lit_safe.averaging": "lit_safe.training.averaging",
    "lit_safe.bootstrap": "lit_safe.statistics.bootstrap",
    "lit_safe.callbacks.announce": "lit_safe.screen.announce",
    "lit_safe.callbacks.before_after": "lit_safe.report.before_after",
    "lit_safe.callbacks.best": "lit_safe.runs.best",
    "lit_safe.callbacks.end_of_run": "lit_safe.runs.end_of_run",
    "lit_safe.callbacks.move_aside": "lit_safe.runs.move_aside",
    "lit_safe.callbacks.progress": "lit_safe.runs.progress_bar",
    "lit_safe.callbacks.run_checkpoint": "lit_safe.runs.run_checkpoint",
    "lit_safe.callbacks.run_folder": "lit_safe.runs.run_folder",
    "lit_safe.callbacks.signals": "lit_safe.runs.signals",
    "lit_safe.checkpoint_path": "lit_safe.runs.checkpoint_path",
    "lit_safe.checkpoints": "lit_safe.runs.checkpoints",
    "lit_safe.costs": "lit_safe.constraint.costs",
    "lit_safe.devices": "lit_safe.execution.devices",
    "lit_safe.dual": "lit_safe.constraint.dual_ascent",
    "lit_safe.dual_curves": "lit_safe.constraint.dual_curves",
    "lit_safe.evaluation_settings": "lit_safe.evaluation.settings",
    "lit_safe.folder_check": "lit_safe.export.folder_check",
    "lit_safe.frozen_policy": "lit_safe.constraint.frozen_policy",
    "lit_safe.held_out": "lit_safe.evaluation.held_out",
    "lit_safe.intervals": "lit_safe.statistics.intervals",
    "lit_safe.label_draws": "lit_safe.training.label_draws",
    "lit_safe.limits": "lit_safe.constraint.limits",
    "lit_safe.loading": "lit_safe.commands.loading",
    "lit_safe.loggers": "lit_safe.runs.loggers",
    "lit_safe.metrics": "lit_safe.training.metrics",
    "lit_safe.model_card": "lit_safe.export.model_card",
    "lit_safe.module": "lit_safe.training.module",
    "lit_safe.multiplier": "lit_safe.constraint.multiplier",
    "lit_safe.optimizers": "lit_safe.training.optimizers",
    "lit_safe.paired_rows": "lit_safe.evaluation.paired_rows",
    "lit_safe.process_memory": "lit_safe.execution.process_memory",
    "lit_safe.progress": "lit_safe.execution.progress",
    "lit_safe.quiet": "lit_safe.execution.quiet",
    "lit_safe.ranking": "lit_safe.statistics.ranking",
    "lit_safe.ranks": "lit_safe.execution.ranks",
    "lit_safe.reference_cache": "lit_safe.training.reference_cache",
    "lit_safe.rng": "lit_safe.execution.rng",
    "lit_safe.run_data": "lit_safe.protocols.data",
    "lit_safe.run_lock": "lit_safe.runs.run_lock",
    "lit_safe.run_seed": "lit_safe.runs.run_seed",
    "lit_safe.schedules": "lit_safe.training.schedules",
    "lit_safe.sft": "lit_safe.training.sft",
    "lit_safe.stepping": "lit_safe.training.stepping",
}
"""Old module → new module."""


EMPTY = {"lit_safe.callbacks"}
"""Packages of which no module is left. They still import, so that the modules in them are looked for by name."""


class Moved:
    """The last finder of ``sys.meta_path``: it is asked for modules that no other finder has found."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Refuse a module's old name.

        Raises:
            ModuleNotFoundError: If the module has moved. The message has its new name.
        """
        if name in MOVED:
            raise ModuleNotFoundError(f"{name} has moved: it is now {MOVED[name]}")
        return ModuleSpec(name, None, is_package=True) if name in EMPTY else None
