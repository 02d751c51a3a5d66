"""Questions: windows of their contexts, answers over all windows, and scores as SQuAD's evaluation counts them."""

import math
import re
import string
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig

from checkpoints.errors import UserError
from stages.distillation.losses import Continuation, GoldLabels, MatchedLogits, SoftLabels
from stages.distillation.models import new_classifier
from stages.distillation.outputs import ModelOutputs
from stages.distillation.students.textcnn import TextCNNConfig
from stages.distillation.task_heads import kind_of
from stages.evaluation import statistics
from stages.evaluation.measures import differ_most
from stages.tasks.kinds import Questions
from stages.tasks.kinds.base import Said
from stages.tasks.kinds.questions import LONGEST, best_answers, score
from stages.tasks.row_maker import RowMaker
from stages.tasks.token_rows import TokenRows, merge_shards, write_rows, write_shard, write_task_rows
from stages.tasks.types import IGNORE_INDEX, UNKNOWN, GoldAnswers, Split, Task
from stages.training.data_order import shard_batch
from tests.conftest import WORDS, make_tokenizer, tiny_config

SAID = st.lists(st.sampled_from(["the", "The", "a", "an", "film", "Film", "films.", "U.S.", "1,000", "-", "é", "–"]),
                max_size=6).map(" ".join)  # fmt: skip


def plain_score(metric: str, said: str, gold: list[str]) -> float:
    """SQuAD's definition, written apart: lower case, no ASCII punctuation, no articles, words counted one by one."""

    def words(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    best = 0.0
    for right in [words(text) for text in gold if words(text)] or [[]]:
        left, shared = list(right), 0
        for word in words(said):
            if word in left:
                left.remove(word)
                shared += 1
        if metric == "exact_match" or not right or not words(said):
            value = float(right == words(said))
        elif shared == 0:
            value = 0.0
        else:
            precision, recall = shared / len(words(said)), shared / len(right)
            value = 2 * precision * recall / (precision + recall)
        best = max(best, value)
    return best


@given(SAID, st.lists(SAID, max_size=3))
def test_scores_are_those_of_squads_definition(said, gold):
    for metric in ("f1", "exact_match"):
        assert score(metric, said, gold) == pytest.approx(plain_score(metric, said, gold))


def test_scores_of_known_answers():
    assert score("f1", "the Denver Broncos!", ["Carolina", "Denver  broncos"]) == 1
    assert score("f1", "Broncos of Denver", ["Denver Broncos"]) == pytest.approx(0.8)
    assert score("exact_match", "", []) == score("f1", "", []) == 1 and score("f1", "film", []) == 0


CONTEXT = " ".join((WORDS * 3)[:50])
SPLIT = Split(
    ["the film was ?", "a story ?", "who cry"],
    [CONTEXT, "a good film .", CONTEXT],
    [
        GoldAnswers(("warm great",), (CONTEXT.index("warm great"),)),
        GoldAnswers(("film",), (7,)),
        GoldAnswers(),
    ],
)


@pytest.fixture
def rows(tmp_path) -> TokenRows:
    return write_task_rows([SPLIT], make_tokenizer(tmp_path / "t"), 24, tmp_path / "rows")


def test_windows_hold_the_whole_question_and_together_the_whole_context(rows):
    assert rows.lengths.max() == 24 and rows.truncated == 0
    owners = np.cumsum(rows.begins) - 1
    assert set(owners) == {0, 1, 2} and (owners == 0).sum() > 1
    first = np.cumsum(rows.targets) - rows.targets
    for question, text in enumerate(SPLIT.text_b):
        windows = np.flatnonzero(owners == question)
        spans = [rows.places[first[w] + 1 : first[w] + rows.targets[w]].tolist() for w in windows]
        assert {tuple(s) for of in spans for s in of} == {m.span() for m in re.finditer(r"\S+", text)}
        for before, after in pairwise(spans):
            assert len([span for span in before if span in after]) == 24 // 3
        for w in windows:
            tokens = rows.tokens[rows.offsets[w] : rows.offsets[w + 1]]
            start = rows.tokens[rows.offsets[windows[0]] :]
            assert tokens[: rows.second[w]].tolist() == start[: rows.second[w]].tolist()


def test_a_window_without_all_of_the_answer_says_that_there_is_none(rows):
    labels = rows.collate(np.arange(len(rows)), np.ones(len(rows), np.float32)).labels
    owners, starts = np.cumsum(rows.begins) - 1, []
    for window, owner in zip(labels, owners, strict=True):
        start, end = (int((window[:, side] == 1).nonzero()[0, 0]) for side in (0, 1))
        assert (window[:, 0] == 1).sum() == (window[:, 1] == 1).sum() == 1
        assert (start == 0) == (end == 0) and start <= end
        starts.append((owner, start > 0, end - start))
    assert (
        (2, True, 0) not in starts
        and (1, True, 0) in starts
        and (0, True, 1) in starts
        and (0, False, 0) in starts
    )


def test_the_gold_logits_give_the_gold_answers(rows):
    codes = rows.labels[rows.labels != IGNORE_INDEX]
    found = best_answers(np.stack([codes & 1, codes >> 1], -1) * 20.0, rows.targets, rows.begins, rows.places)
    kind = Questions(threshold=0.0)
    assert kind.cells(found, SPLIT) == ["warm great", "film", ""]
    assert kind.measure(("f1", "exact_match"), Said(found, np.asarray(SPLIT.gold))) == {
        "f1": 1,
        "exact_match": 1,
    }
    assert [kind.shown_gold(kind.written(gold)) for gold in SPLIT.labels] == [
        "warm great",
        "film",
        "no answer",
    ]
    assert [kind.read(kind.written(gold)) for gold in SPLIT.labels] == SPLIT.labels


def test_the_best_answer_is_that_of_trying_all():
    random = np.random.default_rng(0)
    targets, begins = np.array([4, 50, 45, 1, 2]), np.array([True, True, False, True, True])
    logits = random.normal(size=(targets.sum(), 2)) * 3
    places = np.cumsum(random.integers(1, 4, size=(len(logits), 2)).ravel()).reshape(-1, 2)
    found = best_answers(logits, targets, begins, places)
    expected, at = [], 0
    for begin, count in zip(begins, targets, strict=True):
        logs = logits[at : at + count] - np.log(np.exp(logits[at : at + count]).sum(0))
        if begin:
            expected.append([0.0, -math.inf, 0, 0])
        now = expected[-1]
        now[0] = min(now[0], logs[0].sum())
        for first in range(1, count):
            for last in range(first, min(first + LONGEST, count)):
                if logs[first, 0] + logs[last, 1] > now[1]:
                    now[1:] = logs[first, 0] + logs[last, 1], places[at + first, 0], places[at + last, 1]
        at += count
    assert found[[0, 1, 3]] == pytest.approx(np.array(expected)[[0, 1, 3]])
    assert (
        found[2, 0] == 0 and found[2, 1] < -1e3 and found[2, 2:].tolist() == [0, 0]
    )  # a context without tokens


def test_shards_are_joined_to_the_same_rows(rows, tmp_path):
    maker = RowMaker.of(make_tokenizer(tmp_path / "t"), 24)
    for i in range(3):
        part = Split(SPLIT.text_a[i : i + 1], SPLIT.text_b[i : i + 1], SPLIT.labels[i : i + 1])
        write_shard(maker, maker.task_blocks([part]), tmp_path / str(i), i == 0, i == 2)
    merge_shards([tmp_path / str(i) for i in range(3)], maker, tmp_path / "joined")
    joined = TokenRows.open(tmp_path / "joined")
    assert joined.counts == rows.counts
    for name in ("tokens", "offsets", "second", "labels", "begins", "places"):
        assert np.array_equal(getattr(joined, name), getattr(rows, name)), name


def test_a_question_that_leaves_no_room_for_its_context_is_refused(tmp_path):
    maker = RowMaker.of(make_tokenizer(tmp_path / "t"), 24)
    fits, long = " ".join(WORDS[:12]), " ".join(WORDS[:13])
    write_rows(maker, maker.task_blocks([Split([fits], [CONTEXT], [UNKNOWN])]), tmp_path / "fits")
    with pytest.raises(
        UserError, match=r"24 tokens are too few for the question 'the a.* which has 13: at most 12"
    ):
        list(maker.task_blocks([Split([long], [CONTEXT], [UNKNOWN])]))


def reference(rows: TokenRows, z_student: torch.Tensor, z_teacher: torch.Tensor, temperature: float) -> dict:
    """The losses by definition, one window and one place at a time; their means over the windows."""
    found = dict.fromkeys(("gold_labels", "soft_labels", "matched_logits", "continuation"), 0.0)
    for window in range(len(rows)):
        begin, end = rows.offsets[window], rows.offsets[window + 1]
        places = [i for i in range(end - begin) if rows.labels[begin + i] != IGNORE_INDEX]
        for side in (0, 1):
            s, t = ([z[window, i, side].item() for i in places] for z in (z_student, z_teacher))
            total_s = sum(math.exp(z) for z in s)
            gold = next(j for j, i in enumerate(places) if rows.labels[begin + i] >> side & 1)
            found["gold_labels"] -= math.log(math.exp(s[gold]) / total_s) / 2
            p, q = ([math.exp(z / temperature) for z in of] for of in (t, s))
            found["soft_labels"] -= (
                sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True)) / 2
            )
            squares = sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(places)
            found["matched_logits"] += squares / 2
            found["continuation"] += squares
    return {name: value / len(rows) for name, value in found.items()}


@pytest.mark.parametrize("ranks, micro_batches", [(1, 1), (2, 1), (2, 2)])
def test_losses_equal_a_plain_reference_on_any_ranks(rows, ranks, micro_batches):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(len(rows), 24, 2, generator=generator) for _ in range(2))
    total, found = rows.normalizers(np.arange(len(rows))), {}
    assert total["targets"] == total["labels"] == len(rows)
    for rank in range(ranks):
        for indices, weights in shard_batch(np.arange(len(rows)), ranks, rank, micro_batches):
            batch = rows.collate(indices, weights)
            width = batch.input_ids.shape[1]
            mine, theirs = (ModelOutputs(z[indices, :width]) for z in (student, teacher))
            for loss in (GoldLabels(), SoftLabels(2.0), MatchedLogits(), Continuation()):
                for name, term in loss.terms(mine, theirs, batch).items():
                    found[name] = found.get(name, 0.0) + (term.sum / total[term.normalizer]).item()
    assert found == pytest.approx(reference(rows, student, teacher, 2.0), rel=1e-5)


def test_losses_can_be_called_alone_and_have_finite_gradients(rows):
    batch = rows.collate(np.arange(len(rows)), np.ones(len(rows), np.float32))
    z = torch.randn(*batch.input_ids.shape, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    teacher = ModelOutputs(torch.zeros_like(z))
    losses = {type(loss).__name__: loss(ModelOutputs(z), teacher, labels=batch.labels)
              for loss in (GoldLabels(), SoftLabels(), MatchedLogits())}  # fmt: skip
    expected = reference(rows, z.detach(), torch.zeros_like(z), 1.0)
    assert [loss.item() for loss in losses.values()] == pytest.approx(list(expected.values())[:3], rel=1e-5)
    sum(losses.values()).backward()
    assert z.grad.isfinite().all() and not z.grad[~batch.label_mask].any() and z.grad[batch.label_mask].any()


def test_unknown_answers_are_no_gold(tmp_path):
    split = replace(SPLIT, labels=[UNKNOWN, *SPLIT.labels[1:]])
    rows = write_task_rows([split], make_tokenizer(tmp_path / "t"), 24, tmp_path / "rows")
    unknown = int((np.cumsum(rows.begins) == 1).sum())
    assert rows.normalizers(np.arange(len(rows)))["labels"] == len(rows) - unknown
    batch = rows.collate(np.arange(unknown), np.ones(unknown, np.float32))
    (term,) = GoldLabels().terms(ModelOutputs(torch.randn(*batch.input_ids.shape, 2)), None, batch).values()
    assert term.sum.item() == 0 and not batch.labelled.any() and batch.label_mask.any()


RANDOM = np.random.default_rng(0)
GOLD = np.array(
    [
        GoldAnswers(("film",), (0,), "film plot") if i % 3 else GoldAnswers(context="film plot")
        for i in range(30)
    ]
)
LOGITS = np.stack([RANDOM.normal(size=30).round(1), RANDOM.normal(size=30).round(1), np.zeros(30),
                   RANDOM.choice((4, 9), 30)], axis=1)  # fmt: skip


@pytest.mark.parametrize("metric", ["f1", "exact_match"])
def test_the_threshold_is_the_best_on_dev_and_is_kept_in_the_config(metric):
    kind = Questions(threshold=0.0)
    chosen = kind.fitted(metric, LOGITS, GOLD)
    reached = chosen.measure([metric], Said(LOGITS, GOLD))[metric]
    tried = [
        Questions(threshold=t).measure([metric], Said(LOGITS, GOLD))[metric] for t in np.arange(-5, 5, 0.05)
    ]
    assert reached == pytest.approx(max(tried)) and 1 / 3 < reached < 1  # a third has no answer
    assert kind.constant(metric, GOLD) == pytest.approx(2 / 3)  # of "film" to every question
    assert Questions().fitted(metric, LOGITS, GOLD) == Questions()  # every question has an answer
    config = BertConfig()
    chosen.configure(config)
    config.architectures = ["BertForQuestionAnswering"]
    again = BertConfig.from_dict(config.to_dict())
    assert kind_of(again) == kind.of_model(again) == chosen and again.num_labels == 2
    assert kind_of(BertConfig(architectures=["BertForQuestionAnswering"])) == Questions()


def test_a_student_without_a_head_for_questions_is_refused():
    with pytest.raises(UserError, match="a textcnn has no head for questions; give a model of BERT's kind"):
        new_classifier(TextCNNConfig(vocab_size=30), Questions())
    assert type(new_classifier(tiny_config(), Questions())).__name__ == "BertForQuestionAnswering"


def test_whole_questions_are_resampled_and_agreement_is_of_the_parts(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 5)
    kind = Questions(threshold=0.1)
    values = statistics.bootstrap({"a": kind.resampler(kind.reported, Said(LOGITS, GOLD))}, 30)["a"]
    for i, rows in enumerate(np.concatenate(list(statistics._resamples(30, 0, 0)))):
        plain = kind.measure(kind.reported, Said(LOGITS[rows], GOLD[rows]))
        assert {m: v[i] for m, v in values.items()} == pytest.approx(plain)
    other = LOGITS.copy()
    other[:10, 3] = 13 - other[:10, 3]
    kind = Questions()
    assert kind.agreement(LOGITS, other) == {"label_loyalty": pytest.approx(2 / 3)}
    assert kind.distances(LOGITS, other) == pytest.approx([1 - 8 / 13] * 10 + [0] * 20)
    none = Questions(threshold=-99.0)
    assert none.distances(LOGITS, LOGITS).tolist() == [0] * 30


def test_each_model_is_shown_under_its_own_threshold():
    """The student answers nothing, the teacher a part of the context: so they differ."""
    rows = Split(["q"] * 30, ["c" * 60] * 30, [GoldAnswers(("c",), (0,))] * 30)
    student, teacher = Questions(threshold=-99.0), Questions(threshold=99.0)
    task = Task("x", student, {"test": rows}, ("f1",), "f1")
    found = differ_most(task, "test", LOGITS, LOGITS, teacher)
    assert {row.student for row in found} == {""} and "" not in {row.teacher for row in found}
