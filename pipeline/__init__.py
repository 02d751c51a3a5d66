"""Two-stage distillation from Python: `general_distill` and `distill`, which do what the commands do from a shell."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Result:
    """A finished run.

    Attributes:
        path: its directory, runs/<run>, as an absolute path.
    """

    path: Path

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """The measurements of each model, as in results.json. Keys are the models' names: "teacher", "distilled", ..."""
        from checkpoints.store import read_json

        return read_json(self.path / "results.json")

    def student(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the student and its tokenizer as stock transformers objects.

        Raises:
            UserError: its files are damaged.
        """
        from transformers import AutoTokenizer

        from pipeline.report.run_record import read_run_record
        from stages.distillation.models import HEADS  # where own kinds of students are known to transformers

        run = read_run_record(self.path)
        directory = run.model(run.about.student)
        model = HEADS[run.kind.head].from_pretrained(directory)
        return model, AutoTokenizer.from_pretrained(directory)


def distill(
    task: str,
    *,
    data: Any = "",
    text_columns: str | Sequence[str] = (),
    label_column: str = "",
    run: str = "",
    options: Mapping[str, Any] | None = None,
) -> Result:
    """Make a student of a task, as the command `task-distill` does, and return its run when it is finished.

    Finished stages are skipped and half-done ones resumed. Called again after it finished, it returns at once. Stages run in processes of
    their own and print their progress. The run is written to `runs/` in the working directory. If torchrun or srun starts
    the script on several ranks, each rank must make this call. The stages then run in the ranks' own processes.

    Args:
        task: a GLUE task, a packaged task, a task file (.yaml), or any name together with `data`.
        data: a CSV, TSV, JSON, JSONL or Parquet file, or a directory of such files, or one in GLUE's layout; or another
            file that docs/data.md names. Or rows in memory: a pandas DataFrame, a `datasets.Dataset` or a list of dicts
            (train's), or a mapping of splits to them, such as a `datasets.DatasetDict`.
        text_columns: names of the one or two text columns of a data file.
        label_column: name of the label column of a data file.
        run: name of the run; if left out: `<preset>-<task>`.
        options: any option of the command by its name, such as {"preset": "tinybert4", "intermediate.epochs": 4}.

    Returns:
        The run: its metrics and its student.

    Raises:
        checkpoints.errors.UserError: an option, the data or a model is refused. It is a `ValueError` with the message
            of the command.
        OSError: a file cannot be read or written.
        pipeline.run.StageFailed: a stage was interrupted or failed. The same call resumes it.
        pipeline.launch.in_place.RunEnded: the run failed; raised on every rank but 0.

    Example:
        >>> result = distill(task="reviews", data="reviews.csv", text_columns="review", label_column="stars")
        >>> result.metrics["distilled"]["metric"]
        >>> model, tokenizer = result.student()
    """
    from pipeline.config.inputs import task_stages

    named = {"task": task, "text_columns": text_columns, "label_column": label_column, "run": run}
    return Result(_made(named, data, options, task_stages))


def general_distill(
    corpus: str | PathLike[str] = "", *, run: str = "", options: Mapping[str, Any] | None = None
) -> Path:
    """Make a general student of unlabelled text, as the command `general-distill` does, and return its directory.

    It stops, resumes, returns at once and raises as `distill` does. Tasks begin from it with
    `distill(..., options={"student": "run:NAME"})`.

    Args:
        corpus: a file, a directory or a glob of text, or a data set of the hub (docs/data.md); if left out: the packaged text.
        run: name of the run; if left out: the preset's.
        options: any option of the command by its name, such as {"general.epochs": 3}.

    Returns:
        The directory of the student and its tokenizer, which stock transformers load.

    Example:
        >>> student = general_distill("books/*.txt", run="books")
        >>> transformers.AutoModel.from_pretrained(student)
    """
    from pipeline.config.inputs import general_stages
    from pipeline.plan import made_in

    stage = _made({"corpus": str(corpus), "run": run}, "", options, general_stages) / "general"
    return made_in(stage) / "model"


def _made(
    named: Mapping[str, Any], data: Any, options: Mapping[str, Any] | None, declare: Callable[[Any], Any]
) -> Path:
    """Make a run on all ranks.

    Args:
        named: options that are arguments of the call; empty ones are left out.
        data: the option of that name, or rows in memory.
    """
    from checkpoints.errors import UserError
    from pipeline.config.option_errors import explain
    from pipeline.config.tables_in_memory import as_files
    from pipeline.launch.in_place import on_all_ranks
    from pipeline.run import make

    if not isinstance(options, Mapping | None):
        raise UserError(
            f"{options!r} is not a dict; give options such as {{'general.epochs': 4}}", argument="options"
        )
    given = {name: value for name, value in named.items() if value} | dict(options or {})
    if given.get("seeds"):
        raise UserError(
            f"seeds={given['seeds']!r}: a call makes one run; call it once for each options={{'seed': ...}}"
        )

    def made() -> list[str]:
        path = as_files(data)
        return [str(run.absolute()) for run in make(({"data": path} if path else {}) | given, declare)]

    try:
        (path,) = on_all_ranks(made)
    except UserError as error:
        raise explain(error) from None
    return Path(path)
