"""Rankings: metrics against plain loops, and how tables are read as questions with candidates."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from transformers import BertConfig

from checkpoints.errors import UserError
from stages.distillation.task_heads import kind_of
from stages.evaluation.measures import confidence_intervals
from stages.tasks.kinds import Classes, Ranking
from stages.tasks.kinds.base import Said
from stages.tasks.task import Split, Task, find_task, load_task

KIND = Ranking(("0", "1"))
GROUPS = [4, 1, 5, 3]
GOLD = np.array([0, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1])
DRAW = np.random.default_rng(0)
LOGITS = DRAW.standard_normal((len(GOLD), 2))


def plain(metric: str, scores, gold) -> float:
    """One question, its candidates in order of falling score, wrong before right."""
    said = [g for _, g in sorted(zip(scores, gold, strict=True), key=lambda pair: (-pair[0], pair[1]))]
    ranks = [rank for rank, right in enumerate(said, start=1) if right]
    if metric == "precision_at_1":
        return float(ranks[0] == 1)
    if metric == "mrr":
        return 1 / ranks[0]
    return sum(found / rank for found, rank in enumerate(ranks, start=1)) / len(ranks)


def questions(values):
    ends = np.cumsum([0, *GROUPS])
    return [values[a:b] for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("metric", KIND.reported)
def test_metrics_are_means_over_questions_of_plain_loops(metric):
    scores = LOGITS[:, 1] - LOGITS[:, 0]
    each = [plain(metric, s, g) for s, g in zip(questions(scores), questions(GOLD), strict=True)]
    assert KIND.measure([metric], Said(LOGITS, GOLD, GROUPS))[metric] == pytest.approx(np.mean(each))
    drawn = KIND.resampler([metric], Said(LOGITS, GOLD, GROUPS))(np.array([[0, 1, 2, 3], [2, 2, 0, 3]]))[
        metric
    ]
    assert drawn == pytest.approx([np.mean(each), np.mean([each[2], each[2], each[0], each[3]])])
    if metric == "map":
        theirs = [
            average_precision_score(g, s) for s, g in zip(questions(scores), questions(GOLD), strict=True)
        ]
        assert each == pytest.approx(theirs)
    # A model that says the same of all candidates gains nothing by their order in the file.
    same = [plain(metric, [0] * len(g), g) for g in questions(GOLD)]
    assert KIND.measure([metric], Said(0 * LOGITS, GOLD, GROUPS))[metric] == pytest.approx(np.mean(same))


@pytest.mark.parametrize("metric", KIND.reported)
def test_the_constant_is_the_mean_over_all_orders(metric):
    for size in range(1, 6):
        for right in range(1, size + 1):
            gold = np.array([1] * right + [0] * (size - right))
            orders = [plain(metric, order, gold) for order in itertools.permutations(range(size))]
            assert KIND.constant(metric, gold, [size]) == pytest.approx(np.mean(orders)), (size, right)
    both = [KIND.constant(metric, part, [len(part)]) for part in questions(GOLD)]
    assert KIND.constant(metric, GOLD, GROUPS) == pytest.approx(np.mean(both))


def test_whole_questions_are_drawn_for_intervals_and_compared_by_their_first_candidate():
    split = Split([f"q{i}" for i, n in enumerate(GROUPS) for _ in range(n)], ["a"] * len(GOLD), GOLD.tolist())
    task = Task("t", KIND, {"dev": split}, KIND.reported, "map")
    assert task.groups("dev") == GROUPS
    perfect = np.stack([0 * GOLD, GOLD], 1) - LOGITS * 1e-3
    intervals, retained = confidence_intervals(task, "dev", {"teacher": perfect, "student": LOGITS})
    assert intervals["teacher"]["map"] == (1, 1) and intervals["student"]["map"][0] < 1
    assert retained["teacher"] == (1, 1)
    other = LOGITS.copy()
    best = int(KIND.scores(LOGITS)[:4].argmax())
    other[best, 1] -= 100
    assert KIND.agreement(LOGITS, LOGITS, groups=GROUPS)["label_loyalty"] == 1
    assert KIND.agreement(other, LOGITS, groups=GROUPS)["label_loyalty"] == 3 / 4
    ranks = list(map(int, KIND.cells(LOGITS, split)))
    assert [sorted(part) for part in questions(ranks)] == [list(range(1, n + 1)) for n in GROUPS]
    assert all(
        s[r.index(1)] == s.max()
        for r, s in zip(questions(ranks), questions(KIND.scores(LOGITS)), strict=True)
    )


def test_a_config_tells_a_ranking_from_classes_also_after_another_task():
    config = BertConfig(architectures=["BertForSequenceClassification"])
    KIND.configure(config)
    assert kind_of(BertConfig.from_dict(config.to_dict())) == KIND
    Classes(("0", "1")).configure(config)
    assert kind_of(config) == Classes(("0", "1"))


def table(path, questions: dict[str, list[tuple[str, object]]]) -> None:
    """A table whose questions are not together: their first candidates come first."""
    longest = max(map(len, questions.values()))
    rows = [(q, *of[i]) for i in range(longest) for q, of in questions.items() if i < len(of)]
    path.write_text("question\tsentence\tlabel\n" + "\n".join("\t".join(map(str, row)) for row in rows))


def asked(prefix: str, count: int, size: int = 3) -> dict:
    return {
        f"{prefix} {i}": [(f"{prefix} {i} says {k}", int(k == i % size)) for k in range(size)]
        for i in range(count)
    }


def find(place, **more):
    given = {"text_columns": ("question", "sentence"), "label_column": "label", "metric": "map"} | more
    return find_task("asked", str(place), **given)


def test_a_table_is_read_as_questions_with_candidates(tmp_path):
    none, only = {"all wrong": [("no", 0), ("nor this", 0)]}, {"all right": [("yes", 1)]}
    table(tmp_path / "train.tsv", asked("train", 8) | none | only | {"Test 1": [("another", 1), ("b", 0)]})
    table(tmp_path / "dev.tsv", asked("dev", 4) | none | only)
    table(tmp_path / "test.tsv", asked("test", 4, size=2))
    task = load_task(find(tmp_path))
    assert task.kind == KIND and task.selection == "map" and task.metrics == ("map", "mrr", "precision_at_1")
    assert task.groups("train") == [*[3] * 8]  # "Test 1" is in test, "all ..." in dev
    assert task.groups("dev") == [3] * 4 and task.groups("test") == [2] * 4
    assert task.splits["dev"].text_a[:4] == ["dev 0"] * 3 + ["dev 1"]
    assert any(
        "dev: 4 questions with 12 candidates, 3.0 each; 2 without a right or a wrong" in n for n in task.notes
    )
    assert load_task(find(tmp_path, metric="mrr")).selection == "mrr"


def test_without_dev_whole_questions_are_held_out(tmp_path):
    table(tmp_path / "train.tsv", asked("train", 40) | {"all wrong": [("no", 0)]})
    task = load_task(find(tmp_path))
    held, kept = (set(task.splits[name].text_a) for name in ("dev", "train"))
    assert held and kept and not held & kept and set(task.groups("dev")) == {3}
    assert len(kept | held) == 40 and "all wrong" not in kept | held


@pytest.mark.parametrize("most, questions", [(10, 3), (9, 3), (1, 1), (1000, 20)])
def test_of_some_rows_whole_questions_are_kept(tmp_path, most, questions):
    table(tmp_path / "train.tsv", asked("train", 20))
    table(tmp_path / "dev.tsv", asked("dev", 4))
    task = load_task(replace(find(tmp_path), rows=(most, 1)))
    assert task.groups("train") == [3] * questions and len(set(task.splits["train"].text_a)) == questions


@pytest.mark.parametrize(
    "rows, given, words",
    [
        (asked("q", 8), {"text_columns": ("sentence",)}, "text_columns: 'sentence' alone: a ranking reads a question and a candidate; name two"),
        ({"q": [("a", 0), ("b", 1), ("c", 2)], "r": [("d", 2)]}, {}, "label_column: .*3 labels; a ranking has two"),
        ({"q": [("a", 0)], "r": [("b", 1)]}, {}, "no question of dev has a right and a wrong candidate"),
        (asked("q", 8), {"metric": "accuracies"}, "metric: 'accuracies' does not fit .* map, mrr, precision_at_1"),
    ],
)  # fmt: skip
def test_what_is_no_ranking_is_refused_in_a_line(tmp_path, rows, given, words):
    table(tmp_path / "train.tsv", rows)
    with pytest.raises(UserError, match=words) as error:
        load_task(find(tmp_path, **given))
    assert "\n" not in str(error.value)


def test_the_right_label_may_be_named(tmp_path):
    said = {q: [(text, ("off", "fits")[right]) for text, right in of] for q, of in asked("q", 20).items()}
    table(tmp_path / "train.tsv", said)
    task = load_task(find(tmp_path, positive_label="fits"))
    assert task.labels == ("off", "fits")
    assert sum(task.splits["train"].labels) == len(task.groups("train"))
