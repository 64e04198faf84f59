"""Runs a pipeline of stages, such as fine-tuning, DPO and SACPO, from one YAML file."""

import logging
import os
from pathlib import Path

from lit_safe.errors.message import SettingError
from lit_safe.runs.run_lock import RunFolderError, RunLock
from lit_safe.stages.page import write_page
from lit_safe.stages.pipeline import Stage, check
from lit_safe.stages.process import run_command
from lit_safe.stages.record import Record
from lit_safe.stages.run import run_stages
from lit_safe.stages.settings import resolved

log = logging.getLogger(__name__)


def stages(stages: list[Stage], folder: str) -> int:
    """Run a pipeline of stages (``-c FILE``), each of which can start from the model of an earlier stage.

    Each stage is an ordinary ``fit`` in ``FOLDER/NAME``. Its policy is exported to ``FOLDER/NAME/export``, where later
    stages find it. The settings of all stages are checked before the first one runs. After a stop or a kill, the same
    command continues: stages that are done are kept, and a broken fit continues from its last checkpoint.
    ``FOLDER/report.md`` compares the stages.

    Args:
        stages: The stages, in a YAML file: ``name``, ``config`` (YAML files of ``fit``), ``options``, ``model`` and
            ``reference`` (names of earlier stages), or ``merge`` (docs/stages.md).
        folder: Folder of the pipeline.

    Returns:
        The exit status: 0, or that of the stage that failed.

    Raises:
        SettingError: If a stage is wrong, or the folder holds another pipeline.
    """
    ranks = max(int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    if ranks > 1:
        raise SettingError(
            f"stages was started {ranks} times by a launcher: start it once; each fit starts its own ranks "
            "(trainer.devices)"
        )
    check(stages)
    place = Path(folder)
    settings = resolved(stages, place)
    lock = RunLock(place)
    try:
        lock.acquire()
    except RunFolderError as error:
        raise SystemExit(str(error).replace("--trainer.default_root_dir", "--folder")) from None
    try:
        record = Record(place)
        record.open(settings)
        status = run_stages(stages, record, settings, run_command)
        path = write_page(stages, record, settings)
    finally:
        lock.release()
    log.info("report over the stages: %s", path)
    return status
