"""A finished run as it lies on disk: what the table, the report and the comparison of runs show."""

import contextlib
import csv
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.store import read_json
from pipeline.config import options as options_module
from pipeline.config.options import Options
from pipeline.plan import made_in, read_finished

TITLES = {
    "teacher": "teacher",
    "finetuned": "student fine-tuned, random weights",
    "finetuned_general": "student fine-tuned, general student",
    "distilled": "student distilled",
}
"""The models of the two-stage pipeline. Those of a recipe have their own names."""

ABOUT_THE_RUN = ("run", "preset", "stages", "recipe")
"""What options.json holds beside the options."""


@dataclass
class StageRecord:
    """A stage of a finished run.

    Attributes:
        name: in the run.
        spec: its stage.json.
        finished: its finished.json.
        lines: of its metrics.jsonl.
        directory: where it was made.
        reused: the run that made it, where that is another.
    """

    name: str
    spec: dict[str, Any]
    finished: dict[str, Any]
    lines: list[dict[str, Any]]
    directory: Path
    reused: str

    @property
    def seconds(self) -> float:
        """What it took. Where it was resumed, training counts in whole, and start-up once."""
        trained = max((line.get("seconds", 0.0) for line in self.lines), default=0.0)
        return max(self.finished.get("seconds_of_last_start", 0.0), trained)

    @property
    def speed(self) -> int:
        """Tokens a second while it trained."""
        return next((line["tokens_per_second"] for line in reversed(self.lines) if "seconds" in line), 0)

    @property
    def losses(self) -> dict[str, list[tuple[int, float]]]:
        """LossTerm of the loss -> its (step, value) points."""
        known = ("step", "epoch", "learning_rate", "tokens_per_second", "seconds")
        points = {}
        for line in self.lines:
            for name in line.keys() - {*known, "dev", "best"}:
                points.setdefault(name, []).append((line["step"], line[name]))
        return dict(sorted(points.items()))

    @property
    def dev(self) -> list[tuple[int, float]]:
        """The (step, score) points on dev."""
        return [(line["step"], line["dev"]) for line in self.lines if "dev" in line]


@dataclass
class RunRecord:
    """A run that `evaluate` finished.

    Attributes:
        options: of the run, by group.
        results: model -> what was measured.
        about: what they were measured on: split, rows, selection, constant, labels; and the student the run is about.
        stages: in the order in which they were made.
        recipe: the arguments of the recipe that made it; none for the two-stage pipeline.
    """

    path: Path
    preset: str
    options: dict[str, Any]
    results: dict[str, dict[str, Any]]
    about: dict[str, Any]
    stages: list[StageRecord]
    recipe: list[str]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def task(self) -> dict[str, Any]:
        """The task as evaluate knew it: its name and what decides its rows."""
        return self.stages[-1].spec["inputs"]["task"]

    @property
    def metrics(self) -> list[str]:
        """The task's metrics, the one of selection first."""
        selection = self.about["selection"]
        return sorted(self.results["teacher"]["intervals"], key=lambda name: name != selection)

    @property
    def models(self) -> list[str]:
        """The models there are, as they are shown: the teacher, others, the student that the run is about."""
        names = self.stages[-1].spec["options"]["models"]
        return sorted(names, key=lambda name: (name != "teacher", name == self.main))

    @property
    def main(self) -> str:
        """The name of the student that the run is about."""
        return self.about["student"]

    @property
    def student(self) -> dict[str, Any]:
        """What was measured of the student that the run is about."""
        return self.results[self.main]

    @property
    def taken(self) -> list[StageRecord]:
        """Stages in use, without unselected grid candidates."""
        chosen = [s.finished["scores"] for s in self.stages if s.spec["stage_type"] == "select"]
        unselected = {name for scores in chosen for name in scores["candidates"] if name != scores["chosen"]}
        return [stage for stage in self.stages if stage.name not in unselected]

    def model(self, name: str) -> Path:
        """The directory of one of its models, checked against its manifest.

        Raises:
            UserError: it is damaged.
        """
        stage = self.path / self.stages[-1].spec["inputs"][name]["stage"]
        directory = made_in(stage, read_finished(stage)) / "model"
        try:
            store.verify(directory)
        except store.Damaged as damage:
            raise UserError(
                f"the {title(name)} is damaged ({damage}): run the command of {self.name} again"
            ) from damage
        return directory

    def same_rows(self, other: "RunRecord") -> bool:
        """Whether another run reports the same metric on the same rows."""

        def rows(run: RunRecord) -> tuple:
            source = run.task
            known = (source["name"], source.get("content"), source.get("revision"))
            return (*known, run.about["split"], run.about["selection"])

        return rows(self) == rows(other)

    def max_length(self, name: str) -> int:
        """Tokens that one of its models reads of a row."""
        return self.stages[-1].spec["options"]["max_length"][name]

    @property
    def predictions(self) -> Path:
        """The rows that `evaluate` reported, with their labels and answers."""
        return self.path / f"{self.about['split']}_predictions.csv"

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns of `predictions` that are text: one, or two where the task takes pairs."""
        with contextlib.suppress(OSError), open(self.predictions, newline="", encoding="utf-8") as file:
            if "text_b" in next(csv.reader(file), []):
                return ("text", "text_b")
        return ("text",)

    def differing(self, others: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Option -> (its value here, its value in `others`), where both have it and not the same."""
        here, there = _by_name(self.options), _by_name(others)
        return {
            key: (value, there[key])
            for key, value in here.items()
            if key in there and value != there[key] and key not in ("run", "restart")
        }

    def preset_options(self) -> dict[str, Any]:
        """What the preset alone would set; the defaults where it is there no more."""
        try:
            return asdict(options_module.load(self.preset, [f"task={self.options['task']}"]))
        except UserError:
            return asdict(Options())

    def command(self) -> str:
        """The command that makes this run, in whatever way it was made."""
        if self.recipe:
            return f"python -m pipeline recipe {shlex.join(self.recipe)}"
        given = {"preset": self.preset, "task": self.options["task"], "run": self.name}
        given |= {k: here for k, (here, _) in self.differing(self.preset_options()).items()}
        words = " ".join(shlex.quote(f"{key}={written(value)}") for key, value in given.items())
        return f"python -m pipeline task-distill {words}"


def read_run_record(path: Path) -> RunRecord:
    """Read a run that `evaluate` finished.

    Raises:
        UserError: a stage's record is torn, or it was evaluated by a version that measured less.
    """
    options, results = read_json(path / "options.json"), read_json(path / "results.json")
    stages = [_read_stage(path / name) for name in options.get("stages", [])]
    if torn := [stage.name for stage in stages if not stage.finished]:
        raise UserError(
            f"run {path.name!r}: finished.json of {', '.join(torn)} is torn: run its own command again"
        )
    if not stages or "student" not in stages[-1].finished["scores"]:
        raise UserError(
            f"run {path.name!r} was evaluated by an earlier version, which measured less: run its own "
            "command again; its models are kept, only the evaluation is made anew"
        )
    return RunRecord(
        path,
        options["preset"],
        {k: v for k, v in options.items() if k not in ABOUT_THE_RUN},
        results,
        stages[-1].finished["scores"],
        stages,
        options.get("recipe", []),
    )


def title(model: str) -> str:
    """How a model is called where it is shown."""
    return TITLES.get(model, model)


def _read_stage(directory: Path) -> StageRecord:
    spec, finished = read_json(directory / "stage.json"), read_finished(directory)
    made = made_in(directory, finished)
    lines = []
    if (made / "metrics.jsonl").is_file():
        lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text("utf-8").splitlines()]
    reused = made.parent.name if finished.get("from") else ""
    return StageRecord(directory.name, spec, finished, lines, made, reused)


def _by_name(options: dict[str, Any]) -> dict[str, Any]:
    """Options of groups as "group.option"."""
    named = {}
    for key, value in options.items():
        named |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return named


def written(value: Any) -> str:
    """A value as `key=value` reads it back."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
