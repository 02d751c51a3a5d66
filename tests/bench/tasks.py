"""Teacher, fine-tuned and distilled student on real tasks of every kind, over seeds.

    .venv/bin/python -m tests.bench.tasks --data DIRECTORY             # runs/tasks-*; resumes where it was stopped
    .venv/bin/python -m tests.bench.tasks --data DIRECTORY --seeds 1 --tasks scores --rows 1000 tuning.epochs=2

Arguments such as `tuning.epochs=2` are options of every run. DIRECTORY holds what is published, under these names; a task
whose files are missing is left out:

    glue/STS-B/train.tsv, dev.tsv                        scores (the GLUE benchmark)
    goemotions/train.tsv, dev.tsv, test.tsv, labels.txt  several labels a row (GoEmotions)
    ner/wnut17-train.conll, -dev.conll, -test.conll      entities (WNUT-17)
    xquad/xquad.en.json                                  questions (XQuAD)

Classes are packaged (rotten-tomatoes). docs/benchmarks/tasks.md has the table.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tabulate import tabulate

from stages.tasks.task import find_task, load_task

PLACE = Path("runs/.tasks")
SPLITS = ("train", "dev", "test")
MODELS = {
    "teacher": "teacher",
    "finetuned_layers": "the student, fine-tuned",
    "distilled": "the student, distilled",
}
STAGES = ("tuning", "intermediate", "prediction", "finetuning")
SIZES = [
    "preset=small", "student=teacher-layers", "architecture.layers=3", "baselines=layers", "finetuning.grid=",
    "job.log_every=50", *(f"{stage}.batch_size=16" for stage in STAGES), *(f"{stage}.max_length=64" for stage in STAGES),
    "tuning.learning_rate=1e-4", "intermediate.learning_rate=2e-4", "prediction.learning_rate=1e-4",
    "tuning.epochs=3", "intermediate.epochs=3", "prediction.epochs=3",
    "finetuning.learning_rate=1e-4", "finetuning.epochs=6", "finetuning.patience=0",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--rows", type=int, default=2000, help="of train and of test at most; half as many of dev"
    )
    parser.add_argument("options", nargs="*", help="of every run, such as tuning.epochs=2")
    o = parser.parse_intermixed_args()
    table = []
    for name in o.tasks:
        place = PLACE / f"{name}-{o.rows}"
        place.mkdir(parents=True, exist_ok=True)
        try:
            given = TASKS[name](o.data, place, o.rows)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error.filename} is missing", flush=True)
            continue
        runs = [
            made(f"tasks-{name}-{o.rows}-{seed}", [*SIZES, *given, *o.options, f"seed={seed}"])
            for seed in o.seeds
        ]
        table.append({"task": name, "rows": f"{o.rows:,} at most", "seeds": f"{len(runs)}"} | cells(runs))
        print(tabulate(table, "keys", "github", disable_numparse=True), flush=True)


def made(run: str, options: list[str]) -> Path:
    """Make a run, or find it finished."""
    command = [sys.executable, "-m", "pipeline", "task-distill", *options, f"run={run}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Path("runs", run)


def cells(runs: list[Path]) -> dict[str, str]:
    """Means over the runs, with their standard deviations."""
    about = json.loads((runs[0] / "evaluate/finished.json").read_text())["scores"]
    results = [json.loads((run / "results.json").read_text()) for run in runs]
    row = {"metric": about["selection"], "constant answer": f"{100 * about['constant']:.1f}"}
    for model, title in MODELS.items():
        values = [100 * found[model]["metric"] for found in results]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        row[title] = f"{statistics.mean(values):.1f}{spread}"
    return row


def classes(data: Path, place: Path, rows: int) -> list[str]:
    """Review sentences, fresh or rotten."""
    task = load_task(find_task("rotten-tomatoes"))
    for role in SPLITS:
        split, most = task.splits[role], rows // 2 if role == "dev" else rows
        with open(place / f"{role}.csv", "w", newline="", encoding="utf-8") as file:
            labels = map(task.kind.written, split.labels[:most])
            csv.writer(file).writerows([("text", "label"), *zip(split.text_a[:most], labels, strict=False)])
    return ["task=classes", f"data={place}", "text_columns=text", "label_column=label"]


def several_labels(data: Path, place: Path, rows: int) -> list[str]:
    """Comments with any of 28 emotions."""
    for role in SPLITS:
        cut(
            data / f"goemotions/{role}.tsv",
            place / f"{role}.tsv",
            "\n",
            rows // 2 if role == "dev" else rows,
        )
    labels = (data / "goemotions/labels.txt").read_text(encoding="utf-8").split()
    options = {role: f"{role}.tsv" for role in SPLITS}
    options |= {"columns": ["text", "emotions", "id"], "text": "text", "label": "emotions", "label_separator": ",", "labels": labels}  # fmt: skip
    path = place / "emotions.yaml"
    path.write_text(json.dumps(options), encoding="utf-8")  # JSON is YAML
    return [f"task={path}"]


def entities(data: Path, place: Path, rows: int) -> list[str]:
    """Posts with people, places, products and others."""
    for role in SPLITS:
        source = data / f"ner/wnut17-{role}.conll"
        cut(source, place / f"{role}.conll", "\n\n", rows // 2 if role == "dev" else rows)
    return ["task=entities", f"data={place}", *(f"{stage}.max_length=192" for stage in STAGES)]


def questions(data: Path, place: Path, rows: int) -> list[str]:
    """Questions about paragraphs of Wikipedia; of eight articles one is dev's and one is test's."""
    articles = json.loads((data / "xquad/xquad.en.json").read_text(encoding="utf-8"))["data"]
    roles = {0: "dev", 1: "test"}
    for role in SPLITS:
        own = [article for i, article in enumerate(articles) if roles.get(i % 8, "train") == role]
        (place / f"{role}.json").write_text(json.dumps({"version": "1.1", "data": own}), encoding="utf-8")
    return ["task=questions", f"data={place}", *(f"{stage}.max_length=192" for stage in STAGES)]


def scores(data: Path, place: Path, rows: int) -> list[str]:
    """How similar two sentences are, from 0 to 5; dev is reported, for test has no labels."""
    for role in ("train", "dev"):
        most = rows // 2 if role == "dev" else rows
        cut(data / f"glue/STS-B/{role}.tsv", place / f"{role}.tsv", "\n", 1 + most)
    return ["task=sts-b", f"data={place}"]


def cut(source: Path, target: Path, separator: str, most: int) -> None:
    """Write the first rows of a file."""
    rows = source.read_text(encoding="utf-8-sig").strip("\n").split(separator)[:most]
    target.write_text(separator.join(rows) + "\n", encoding="utf-8")


TASKS: dict[str, Callable[[Path, Path, int], list[str]]] = {
    "scores": scores,
    "classes": classes,
    "several-labels": several_labels,
    "entities": entities,
    "questions": questions,
}
"""Name -> what writes its files to a place and returns the options of its runs."""


if __name__ == "__main__":
    main()
