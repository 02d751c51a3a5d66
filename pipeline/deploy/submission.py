"""One submission to GLUE's site, of the runs of its tasks."""

import zipfile
import zlib
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
        UserError: two runs answer the same file, or a zip file is damaged.
    """
    by: dict[str, str] = {}
    answers: dict[str, bytes] = {}
    for run in runs:
        try:
            with zipfile.ZipFile(run / NAME) as archive:
                found = {file: archive.read(file) for file in archive.namelist() if file in FILES}
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(
                f"{run / NAME} is damaged ({error}): remove {run / 'evaluate'} and run the command of {run.name} again"
            ) from error
        for file, answer in found.items():
            if file in by:
                raise UserError(
                    f"{by[file]} and {run.name} both answer {file}: name one of them in runs=", "runs"
                )
            by[file], answers[file] = run.name, answer
    with store.replaced(target) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_DEFLATED) as joined:
        for file, answer in sorted(answers.items()):
            joined.writestr(file, answer)
    return by
