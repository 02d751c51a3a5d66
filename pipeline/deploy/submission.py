"""One submission to GLUE's site, of the runs of its tasks."""

import zipfile
from pathlib import Path

from checkpoints import store
from checkpoints.errors import UserError
from stages.tasks.readers.glue import TEST_FILES

NAME = "glue_submission.zip"
FILES = {file: task for task, files in TEST_FILES.items() for file in files}
"""File of a submission -> its task."""


def join_submissions(runs: list[Path], target: Path) -> dict[str, str]:
    """Write the answers of several runs to one zip file.

    Args:
        runs: directories, each with the zip file that its evaluation wrote.
        target: the file to write; one that is there is replaced.

    Returns:
        File of the submission -> name of the run that answers it.

    Raises:
        UserError: two runs answer the same file.
    """
    by: dict[str, Path] = {}
    for run in runs:
        with zipfile.ZipFile(run / NAME) as archive:
            for file in archive.namelist():
                if file in by:
                    raise UserError(
                        f"{by[file].name} and {run.name} both answer {file}: name one of them in runs=",
                        "runs",
                    )
                by[file] = run
    with store.replaced(target) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_DEFLATED) as joined:
        for file, run in sorted(by.items()):
            with zipfile.ZipFile(run / NAME) as archive:
                joined.writestr(file, archive.read(file))
    return {file: run.name for file, run in by.items()}
