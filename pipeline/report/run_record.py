"""Read what a finished run left on disk, for the tables, the report and the comparison of runs."""

import contextlib
import csv
import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.store import read_json
from pipeline.config import run_options
from pipeline.config.run_options import Options
from pipeline.plan import made_in
from stages.evaluation.results import EvaluationInfo, ModelResult, busy_note, parse, read_results
from stages.tasks.kinds import KINDS, Kind

TITLES = {
    "finetuned": "fine-tuned, random init",
    "finetuned_general": "fine-tuned, general student",
    "finetuned_layers": "fine-tuned, teacher's layers",
    "distilled": "distilled student",
}
"""Display names of the models of the two-stage pipeline. Other models are shown under their own names."""

PER_SECOND = "_per_second"
"""Ends the name of a job's speed in metrics.jsonl, after its unit."""

RUN_KEYS = ("run", "preset", "stages", "recipe")
"""What options.json holds beside the options."""


@dataclass(frozen=True)
class TaskRecord:
    """The task that a run was evaluated on.

    Attributes:
        identity: what decides its rows: reader, files, hub name.
        content: sha256 of its files, by role.
        revision: the revision of a task from the hub.
    """

    name: str
    identity: dict[str, Any]
    content: dict[str, str] | str = field(default_factory=dict)
    revision: str = ""


@dataclass
class StageRecord:
    """A stage of a finished run.

    Attributes:
        options: what decided its result.
        inputs: name -> {"stage": an earlier stage}, or what identifies something given.
        scores: what the stage reported; the keys depend on the type.
        time: when it finished.
        machine: processor, cores, memory and versions; empty where it was not recorded.
        seconds_of_last_start: wall time since it was last started or resumed.
        lines: the lines of its metrics.jsonl.
        directory: where its artefact is.
        reused: the other run that made it; empty for a stage of this run's own.
    """

    name: str
    stage_type: str
    options: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    scores: dict[str, Any]
    time: str
    machine: dict[str, Any]
    seconds_of_last_start: float
    lines: list[dict[str, Any]]
    directory: Path
    reused: str

    @property
    def seconds(self) -> float:
        """Wall time. For a resumed stage: all of its training, and one start-up."""
        trained = max((line.get("seconds", 0.0) for line in self.lines), default=0.0)
        return max(self.seconds_of_last_start, trained)

    @property
    def speed(self) -> str:
        """Training throughput at the last log line, such as "1,024 tokens/s"; "" where there is none."""
        lines = (line for line in reversed(self.lines) if "seconds" in line)
        found = ((name, line[name]) for line in lines for name in line if name.endswith(PER_SECOND))
        name, value = next(found, ("", 0))
        return f"{value:,} {name.removesuffix(PER_SECOND)}/s" if name else ""

    @property
    def losses(self) -> dict[str, list[tuple[float, float]]]:
        """Loss term -> its (step, value) points."""
        known = ("step", "epoch", "learning_rate", "seconds", "dev", "best")
        points: dict[str, list[tuple[float, float]]] = {}
        for line in self.lines:
            for name in line.keys() - known:
                if not name.endswith(PER_SECOND):
                    points.setdefault(name, []).append((line["step"], line[name]))
        return dict(sorted(points.items()))

    @property
    def dev(self) -> list[tuple[float, float]]:
        """The (step, score) points on dev."""
        return [(line["step"], line["dev"]) for line in self.lines if "dev" in line]


@dataclass
class RunRecord:
    """A run that `evaluate` finished.

    Attributes:
        options: the options of the run, by group.
        results: model -> what was measured.
        about: what the models were evaluated on, and which student the run is about.
        stages: in the order in which they were made.
        recipe: the arguments of the recipe that made it; empty for the two-stage pipeline.
        task: the task of the evaluation.
    """

    path: Path
    preset: str
    options: dict[str, Any]
    results: dict[str, ModelResult]
    about: EvaluationInfo
    stages: list[StageRecord]
    recipe: list[str]
    task: TaskRecord

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def metrics(self) -> list[str]:
        """The task's metrics, the selection metric first."""
        return sorted(self.teacher.intervals, key=lambda name: name != self.about.selection)

    @property
    def kind(self) -> Kind:
        """The kind of the task."""
        about = self.about
        return KINDS[about.kind](tuple(about.labels)) if about.labels else KINDS[about.kind]()

    @property
    def f1_note(self) -> str:
        """Which class F1 is of; "" where it is not reported."""
        labels = self.about.labels or []
        if "f1" not in self.metrics or not labels:
            return ""
        if len(labels) == 2:
            return f"F1 is that of the class {labels[1]!r:.50}"
        return "F1 is the mean over the classes"

    @property
    def encoder(self) -> str:
        """The name that was given for the teacher, or for the encoder that was tuned on the teacher's answers."""
        return self.options["answers"]["encoder"] if self.about.answers else self.options["teacher"]

    @property
    def reference(self) -> str:
        """What tables call the model "teacher": encoder, if it was tuned on the teacher's answers."""
        return "encoder" if self.about.answers else "teacher"

    @property
    def gold(self) -> str:
        """What tables call the labels of the reported rows."""
        return "gold" if self.about.gold else "answer"

    @property
    def accuracy(self) -> str:
        """What tables call the fraction of rows with the right label."""
        return "accuracy" if self.about.gold else "agreement"

    @property
    def gold_note(self) -> str:
        """A sentence for the reader if there are no gold labels; else ""."""
        if self.about.gold:
            return ""
        return (
            "The labels of these rows are the teacher's answers: the numbers are agreement with the teacher"
        )

    @property
    def answers_note(self) -> str:
        """How noisy the answers are that were the teacher; "" where it is a model."""
        if not (noise := self.about.answers):
            return ""
        said = f"The teacher is a table of answers; an encoder tuned on them taught the layers. Of {noise.rows:,} answers"
        if folds := self.options["answers"].get("folds"):
            said = f"{said}, judged by {folds} encoders tuned without them,"
        if noise.differ is None:
            return f"{said} the mean distance from the encoder's is {noise.distance:.3g}"
        return f"{said} the encoder gives another label to {noise.differ:.1%}; their mean entropy is {noise.entropy:.2f} bits"

    def title(self, model: str) -> str:
        """The display name of one of its models."""
        return self.reference if model == "teacher" else title(model)

    @property
    def busy_note(self) -> str:
        """A warning where costs were measured on a busy machine; else ""."""
        return busy_note(result.costs for result in self.results.values())

    @property
    def models(self) -> list[str]:
        """The models in display order: the teacher, the others, the student that the run is about."""
        names = self.stages[-1].options["models"]
        return sorted(names, key=lambda name: (name != "teacher", name == self.about.student))

    @property
    def teacher(self) -> ModelResult:
        return self.results["teacher"]

    @property
    def student(self) -> ModelResult:
        """The results of the student that the run is about."""
        return self.results[self.about.student]

    @property
    def stages_in_use(self) -> list[StageRecord]:
        """The stages without unselected grid candidates."""
        chosen = [stage.scores for stage in self.stages if stage.stage_type == "select"]
        unselected = {name for scores in chosen for name in scores["candidates"] if name != scores["chosen"]}
        return [stage for stage in self.stages if stage.name not in unselected]

    def of_type(self, stage_type: str) -> list[StageRecord]:
        """The stages of one type."""
        return [stage for stage in self.stages if stage.stage_type == stage_type]

    def model(self, name: str) -> Path:
        """The directory of one of its models, verified against its manifest."""
        stage = self.path / self.stages[-1].inputs[name]["stage"]
        directory = made_in(stage) / "model"
        if damage := store.damage(directory):
            raise UserError(
                f"the model {self.title(name)!r} is damaged, or another run that made it has replaced it ({damage}): run the command of {self.name} again"
            )
        return directory

    def same_rows(self, other: "RunRecord") -> bool:
        """Whether another run reports the same metric on the same rows."""

        def rows(run: RunRecord) -> tuple:
            task = run.task
            f1_of = run.f1_note if run.about.selection == "f1" else ""
            return task.name, task.content, task.revision, run.about.split, run.about.selection, f1_of

        return rows(self) == rows(other)

    def max_length(self, name: str) -> int:
        """Tokens that one of its models reads of a row."""
        return self.stages[-1].options["max_length"][name]

    @property
    def predictions(self) -> Path:
        """The file with the rows that `evaluate` reported, their labels and predictions."""
        return self.path / f"{self.about.split}_predictions.csv"

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The text columns of `predictions`: one, or two where the task takes pairs."""
        with contextlib.suppress(OSError), open(self.predictions, newline="", encoding="utf-8") as file:
            if "text_b" in next(csv.reader(file), []):
                return ("text", "text_b")
        return ("text",)

    def differing(self, others: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Option -> (its value here, its value in `others`), of the options that differ."""
        here, there = _by_name(self.options), _by_name(others)
        return {
            key: (value, there[key])
            for key, value in here.items()
            if key in there and value != there[key] and key not in ("run", "restart")
        }

    def preset_options(self) -> dict[str, Any]:
        """The options of the preset alone; the defaults where the preset no longer exists."""
        try:
            return asdict(run_options.load(self.preset, [f"task={self.options['task']}"]))
        except UserError:
            return asdict(Options())

    def command(self) -> str:
        """The command that reproduces this run."""
        if self.recipe:
            return f"python -m pipeline recipe {shlex.join(self.recipe)}"
        given = {"preset": self.preset, "task": self.options["task"], "run": self.name}
        given |= {k: here for k, (here, _) in self.differing(self.preset_options()).items()}
        words = " ".join(shlex.quote(f"{key}={written(value)}") for key, value in given.items())
        return f"python -m pipeline task-distill {words}"


def read_run_record(path: Path) -> RunRecord:
    """Read a run that `evaluate` finished.

    Raises:
        UserError: a file of the run is incomplete, or another version evaluated it.
    """
    again = "run the run's own command again"
    if not (options := read_json(path / "options.json")):
        raise UserError(f"run {path.name!r}: its options.json is incomplete: {again}")
    stages = [_read_stage(path / name) for name in options.get("stages", [])]
    try:
        about = parse(EvaluationInfo, stages[-1].scores)
        record = RunRecord(
            path,
            options["preset"],
            {k: v for k, v in options.items() if k not in RUN_KEYS},
            read_results(path / "results.json"),
            about,
            stages,
            options.get("recipe", []),
            parse(TaskRecord, stages[-1].inputs["task"]),
        )
    except (ValueError, LookupError) as error:
        raise UserError(
            f"run {path.name!r} was evaluated by another version, whose results have another form: run its own "
            "command again; its models are kept, and only the evaluation is repeated"
        ) from error
    if about.kind not in KINDS:
        raise UserError(
            f"run {path.name!r} has a kind of task that this version lacks, {about.kind!r}: use the version that made it"
        )
    if missing := [model for model in record.models if model not in record.results]:
        raise UserError(f"run {path.name!r}: its results.json lacks {missing[0]!r}: {again}")
    return record


def title(model: str) -> str:
    """The display name of a model."""
    return TITLES.get(model, model)


def _read_stage(directory: Path) -> StageRecord:
    spec, finished = read_json(directory / "stage.json"), read_json(directory / "finished.json")
    made = made_in(directory)  # its own, where the other run has made another in its place
    try:
        lines = []
        if (made / "metrics.jsonl").is_file():
            lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text("utf-8").splitlines()]
        return StageRecord(
            directory.name, spec["stage_type"], spec["options"], spec["inputs"], finished["scores"], finished["time"],
            finished.get("machine", {}), finished.get("seconds_of_last_start", 0.0), lines, made,
            made.parent.name if made != directory else "",
        )  # fmt: skip
    except (ValueError, KeyError) as error:
        raise UserError(
            f"run {directory.parent.name!r}: a file of stage {directory.name} is incomplete ({error}): run the "
            "run's own command again"
        ) from error


def _by_name(options: dict[str, Any]) -> dict[str, Any]:
    """Flatten option groups: "group.option" -> value."""
    named: dict[str, Any] = {}
    for key, value in options.items():
        named |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return named


def millions(value: float, digits: int = 0) -> str:
    """Format a number in millions with `digits` decimals, or one below a million with two significant digits.

    Example:
        >>> millions(22_700_000, 1), millions(1_934, 1), millions(0)
        ('22.7', '0.0019', '0')
    """
    value /= 1e6
    return f"{value:,.{digits}f}" if value >= 1 else f"{value:.2g}"


def written(value: Any) -> str:
    """Format a value so that `key=value` reads it back."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
