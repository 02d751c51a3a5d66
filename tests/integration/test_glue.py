"""Several tasks of GLUE by one command."""

import pytest

from tests.conftest import sentences

TASKS = {"STS-B": "score", "RTE": "label"}
SHORT = ("text_columns=", "label_column=", "student=teacher-layers", "tuning.epochs=1", "intermediate.epochs=1",
         "prediction.epochs=1")  # fmt: skip


@pytest.fixture(scope="module")
def tasks(place):
    for name, label in TASKS.items():
        directory = place.path / "glue" / name
        directory.mkdir(parents=True)
        for split, count in (("train", 24), ("dev", 8)):
            rows = [
                f"{text}\tit is\t{float(good) if label == 'score' else ('not_' * good) + 'entailment'}"
                for text, good in sentences(count, len(split))
            ]
            (directory / f"{split}.tsv").write_text(
                "\n".join([f"sentence1\tsentence2\t{label}", *rows]) + "\n"
            )
    return place


def test_all_tasks_of_a_directory_are_made_and_stand_in_one_table(tasks):
    given = ("task=", "data=glue", "run=all", "seeds=1 2", *SHORT)
    status, output = tasks.run("glue", *given)
    assert status == 0, output
    table = output[output.rindex("task ") :].splitlines()
    assert [line.split()[:2] for line in table[2:]] == [
        ["sts-b", "pearson"],
        ["rte", "accuracy"],
        ["mean", "(of"],
    ]
    assert "±" in table[2] and "±" in table[3] and table[4].rstrip().endswith("%)")
    assert sorted(run.name for run in (tasks.path / "runs").glob("all-*")) == [
        f"all-{task}-seed{seed}" for task in ("rte", "sts-b") for seed in (1, 2)
    ]
    status, again = tasks.run("glue", *given)
    assert (
        status == 0
        and "starts" not in again
        and again[again.rindex("task ") :] == output[output.rindex("task ") :]
    )


def test_what_is_refused_of_one_task_is_refused_before_the_first_begins(tasks):
    (tasks.path / "glue" / "RTE" / "dev.tsv").rename(tasks.path / "glue" / "RTE" / "dev.old")
    status, output = tasks.run("glue", "task=", "data=glue", "run=none", *SHORT)
    (tasks.path / "glue" / "RTE" / "dev.old").rename(tasks.path / "glue" / "RTE" / "dev.tsv")
    assert status == 2 and "dev.tsv" in output and not (tasks.path / "runs" / "none-sts-b").exists()
    status, output = tasks.run("glue", "task=tiny", *SHORT)
    assert status == 2 and "'tiny' is not a GLUE task" in output
