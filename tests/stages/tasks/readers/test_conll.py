"""Labels of words, and rows whose labels are hidden: what is read, what is asked, what a loss is divided by."""

import math

import numpy as np
import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation.losses.prediction import Continuation, GoldLabels, MatchedLogits, SoftLabels
from stages.distillation.outputs import ModelOutputs
from stages.tasks import task
from stages.tasks.batches import label_index, normalizers
from stages.tasks.kinds import Classes, Scores
from stages.tasks.readers import indonesian
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import IGNORE_INDEX, UNLABELLED, Split, Task, TaskRequest, TaskSource
from stages.training.data_order import shard_batch
from tests.conftest import make_tokenizer

CLASSES = 3
TEXTS = ["the warmly good film", "a good movie", "bad badly story film cry", "plot"]
LABELS = [[0, 1, 2, 0], [0, UNLABELLED, 1], [UNLABELLED] * 5, [2]]


@pytest.fixture
def rows(tmp_path):
    """Words of which two are spelt in two pieces."""
    tokenizer = make_tokenizer(tmp_path / "t")
    tokenizer.add_tokens([])
    state = tokenizer.backend_tokenizer
    from tokenizers import models

    pieces = [*tokenizer.get_vocab().items(), ("##ly", tokenizer.vocab_size)]
    state.model = models.WordPiece(dict(pieces), unk_token="[UNK]")
    return write_task_rows([Split(TEXTS, None, LABELS)], tokenizer, 16, tmp_path / "rows")


def test_a_label_stands_at_the_first_piece_of_its_word(rows):
    batch = rows.collate(np.arange(4), np.ones(4, np.float32))
    n = IGNORE_INDEX
    assert batch.labels.tolist() == [
        [n, 0, 1, n, 2, 0, n, n],
        [n, 0, UNLABELLED, 1, n, n, n, n],
        [n, UNLABELLED, UNLABELLED, n, UNLABELLED, UNLABELLED, UNLABELLED, n],
        [n, 2, n, n, n, n, n, n],
    ]
    assert rows.targets.tolist() == [4, 3, 5, 1] and rows.labelled.tolist() == [4, 2, 0, 1]
    order = rows.collate(np.array([3, 1]), np.ones(2, np.float32))
    assert label_index(rows.first_targets, order)[order.label_mask].tolist() == [12, 4, 5, 6]


def reference(rows, student, teacher, temperature):
    """Losses over all words, in loops: gold over known labels, the others over all words."""
    gold, soft, matched, words, known = 0.0, 0.0, 0.0, 0, 0
    for i, z_s, z_t in zip(range(len(rows)), student, teacher, strict=True):
        begin = int(rows.offsets[i])
        for place in range(int(rows.lengths[i])):
            label = int(rows.labels[begin + place])
            if label == IGNORE_INDEX:
                continue
            words += 1
            s, t = z_s[place].tolist(), z_t[place].tolist()
            p, q = ([math.exp(z / temperature) for z in values] for values in (t, s))
            soft -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
            matched += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / CLASSES
            if label >= 0:
                known += 1
                gold -= math.log(math.exp(s[label]) / sum(map(math.exp, s)))
    return {"gold_labels": gold / known, "soft_labels": soft / words, "matched_logits": matched / words,
            "continuation": CLASSES * matched / words}  # fmt: skip


@pytest.mark.parametrize("ranks, micro_batches", [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_losses_of_words_equal_a_plain_reference_on_any_ranks(rows, ranks, micro_batches):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 8, CLASSES, generator=generator) for _ in range(2))
    losses = [GoldLabels(), SoftLabels(2.0), MatchedLogits(), Continuation()]
    total = normalizers(rows.lengths, rows.targets, rows.labelled)
    found = {}
    for rank in range(ranks):
        for indices, weights in shard_batch(np.arange(4), ranks, rank, micro_batches):
            batch = rows.collate(indices, weights)
            width = batch.input_ids.shape[1]
            mine, theirs = (ModelOutputs(z[indices, :width]) for z in (student, teacher))
            for loss in losses:
                for name, term in loss.terms(mine, theirs, batch).items():
                    found[name] = found.get(name, 0.0) + (term.sum / total[term.normalizer]).item()
    assert found == pytest.approx(reference(rows, student, teacher, 2.0), rel=1e-5)


def test_a_batch_without_any_known_label_has_a_gold_loss_of_nothing(rows):
    batch = rows.collate(np.array([2]), np.ones(1, np.float32))
    total = normalizers(rows.lengths[[2]], rows.targets[[2]], rows.labelled[[2]])
    (term,) = GoldLabels().terms(ModelOutputs(torch.randn(1, 8, 3)), None, batch).values()
    assert (term.sum / total[term.normalizer]).item() == 0.0


def test_gold_of_rows_whose_labels_are_hidden():
    from tests.stages.distillation.losses.test_layer_losses import batch_of

    z = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    classes = batch_of([2, 2], 2, labels=torch.tensor([0, UNLABELLED]))
    (term,) = GoldLabels().terms(ModelOutputs(z), None, classes).values()
    assert term.normalizer == "labels" and term.sum.item() == pytest.approx(math.log(1 + math.exp(-2)))
    scores = batch_of([2, 2], 2, labels=torch.tensor([1.0, math.nan]))
    (term,) = GoldLabels().terms(ModelOutputs(torch.tensor([[2.0], [5.0]])), None, scores).values()
    assert term.sum.item() == 1.0


@pytest.mark.parametrize("labels, hidden", [(("a", "b"), UNLABELLED), (None, math.nan)])
def test_hidden_labels_are_gone_and_the_same_for_one_seed(monkeypatch, labels, hidden):
    texts = [f"text {i}" for i in range(20)]
    kind = Classes(labels) if labels else Scores()
    whole = Task(
        "t", kind, {"train": Split(texts, None, [i % 2 for i in range(20)])}, ("accuracy",), "accuracy"
    )
    monkeypatch.setattr("stages.tasks.readers.files.load", lambda source, revision: whole)

    def load(seed):
        return task.load_task(TaskSource("t", "files", unlabelled=(0.7, seed))).splits

    first, again, other = load(1), load(1), load(2)
    assert first["train"] == again["train"] and first["unlabelled"].text_a == again["unlabelled"].text_a
    assert len(first["unlabelled"]) == 14 and first["unlabelled"].text_a != other["unlabelled"].text_a
    assert sorted(first["train"].text_a + first["unlabelled"].text_a) == sorted(texts)
    assert all(label == hidden or math.isnan(label) for label in first["unlabelled"].labels)
    for text, label in zip(first["train"].text_a, first["train"].labels, strict=True):
        assert label == int(text.split()[1]) % 2


def test_rows_take_a_part_of_train_before_labels_are_hidden(monkeypatch):
    texts, labels = [f"text {i}" for i in range(20)], [i % 2 for i in range(20)]
    splits = {name: Split(texts, texts, labels) for name in ("train", "dev")}
    whole = Task("t", Classes(("a", "b")), splits, ("accuracy",), "accuracy")
    monkeypatch.setattr("stages.tasks.readers.files.load", lambda source, revision: whole)

    def load(**options):
        return task.load_task(TaskSource("t", "files", **options)).splits

    ten, other = load(rows=[10, 1]), load(rows=[10, 2])
    assert len(ten["train"]) == 10 and ten["dev"] == splits["dev"] and ten["train"] != other["train"]
    assert ten["train"].text_b == ten["train"].text_a and load(rows=[30, 1])["train"] == splits["train"]
    assert [int(text.split()[1]) % 2 for text in ten["train"].text_a] == ten["train"].labels
    both = load(rows=[10, 1], unlabelled=[0.7, 1])
    assert (len(both["train"]), len(both["unlabelled"])) == (3, 7)
    assert sorted(both["train"].text_a + both["unlabelled"].text_a) == sorted(ten["train"].text_a)


def test_indonesian_sentences_are_read_once_and_split_by_their_text(tmp_path, monkeypatch):
    sentences = ["Saya\tPR\npergi\tvb\n", "saya\tPR\nPergi\tVB\n", "ada\tNN\nnya\tPR\tNN\n"]
    sentences += [f"kata{i}\tNN\n.\tSYM\n" for i in range(200)]
    path = tmp_path / "tags.txt"
    path.write_text("\n".join(sentences))
    monkeypatch.setattr(indonesian, "inside", lambda *_: path)
    source = indonesian.find(TaskRequest("Indonesian_Tags"))
    found = indonesian.load(source, None)
    assert found.token_level and len(found.labels) == 16 and found.selection == "accuracy"
    rows = [pair for split in found.splits.values() for pair in zip(split.text_a, split.labels, strict=True)]
    assert (
        len(rows) == 201
        and set(found.splits) == {"train", "dev", "test"}
        and all(map(len, found.splits.values()))
    )
    tags = dict(rows)["Saya pergi"]
    assert [found.labels[tag] for tag in tags] == ["PR", "VB"]
    with pytest.raises(UserError, match="takes no data"):
        indonesian.find(TaskRequest("indonesian-tags", "x.csv"))
    path.write_text("Saya\tPR\npergi\n")
    with pytest.raises(UserError, match="line 2"):
        indonesian.load(source, None)


CONLL = "-DOCSTART- -X- O\n\nAda NNP B-PER\n# # O\n\n\nIda\tNNP\tB-PER\n. . O\n"


def test_words_of_ones_own_are_read_from_conll_files(tmp_path):
    (tmp_path / "train.conll").write_text("\ufeff" + CONLL)
    (tmp_path / "dev.conll").write_text("it O\r\nis O\r\n\r\nIDA B-PER\n. O\n")
    source = task.find_task("My NER", str(tmp_path))
    assert source.name == "my-ner"
    found = task.load_task(source)
    assert found.token_level and found.labels == ("B-PER", "I-PER", "O")
    assert (found.splits["train"].text_a, found.splits["train"].labels) == (
        ["Ada #"],
        [[0, 2]],
    )  # Ida stands in dev
    assert found.splits["dev"].text_a == ["it is", "IDA ."]
    assert task.find_task("", str(tmp_path / "train.conll")).name == "train"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nb\n", "line 2: 'b' is not a word and its label"),
        ("a b\tO\nc\tX\n", "line 1: .* is not a word and its label"),
        ("a O\nb X\n\n# text = c\nc O\n", "line 4: 4 columns, the first sentence has 2"),
        ("\n\n", "no sentences"),
        ("a O\nb O\n", "every label is 'O'"),
    ],
)
def test_a_conll_file_that_cannot_be_used(tmp_path, content, message):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.conll").write_text(content if name == "train" else "z O\n")
    with pytest.raises(UserError, match=message):
        task.load_task(task.find_task("mine", str(tmp_path)))


def test_a_label_that_train_lacks_and_options_of_tables(tmp_path):
    (tmp_path / "train.conll").write_text("a O\nb X\n")
    (tmp_path / "dev.conll").write_text("c O\n\nd Y\n")
    with pytest.raises(
        UserError, match="dev.conll, the sentence at line 3: label 'Y' is not one of train's: O, X"
    ):
        task.load_task(task.find_task("mine", str(tmp_path)))
    with pytest.raises(UserError, match="leave text_columns"):
        task.find_task("mine", str(tmp_path), ("text",))
    with pytest.raises(UserError, match="no file"):
        task.find_task("mine", str(tmp_path / "none.conll"))


def test_without_dev_some_of_the_sentences_are_held_out(tmp_path):
    (tmp_path / "tags.conll").write_text("\n".join(f"word{i} A\n. B\n" for i in range(80)))
    found = task.load_task(task.find_task("mine", str(tmp_path / "tags.conll")))
    assert set(found.splits) == {"train", "dev"} and len(found.splits["dev"]) == 20
    assert len(found.splits["train"]) == 60
    assert any(note.startswith("dev: 20 of 80 sentences of train, held out") for note in found.notes)


def test_the_usual_names_and_parts_of_conll_files(tmp_path):
    def write(name, start):
        lines = [f"word{start + n} {'AB'[n % 2]}\n\n" for n in range(40)]
        (tmp_path / name).write_text("".join(lines))

    for n, name in enumerate(["ner_train-00000-of-00002", "ner_train-00001-of-00002", "ner_valid", "other"]):
        write(f"{name}.conll", 100 * n)
    found = task.load_task(task.find_task("mine", str(tmp_path)))
    assert len(found.splits["train"]) == 80 and len(found.splits["dev"]) == 40
    assert {"dev: ner_valid.conll, 40 sentences", "not read: other.conll"} <= set(found.notes)
    (tmp_path / "other.conll").write_text("a\tB C\n")
    with pytest.raises(UserError, match="is not a word and its label"):
        task.load_task(task.find_task("mine", str(tmp_path / "other.conll")))


def test_words_that_nothing_is_seen_of_are_left_out_with_their_labels(tmp_path):
    """WNUT-17 has an emoji's variation selector as a word; BERT's tokenizers make no token of it."""
    odd = "a\tO\n\ufe0f\tO\nNew\tB-place\n\u200d\tI-place\nYork\tI-place\n\n\ufe0e\tB-place\nRome\tI-place\nis\tO\n"
    for role, text in (("train", odd), ("dev", "\ufe0f\tO\n\nRome\tB-place\n\nin\tO\n")):
        (tmp_path / f"{role}.conll").write_text(text, encoding="utf-8")
    found = task.load_task(task.find_task("places", str(tmp_path)))
    train, dev = found.splits["train"], found.splits["dev"]
    assert train.text_a == ["a New York", "Rome is"] and dev.text_a == ["Rome", "in"]
    named = [[found.labels[label] for label in of] for of in train.labels]
    assert named == [["O", "B-place", "I-place"], ["B-place", "O"]]
    assert any("train: 3 words without a visible character" in note for note in found.notes), found.notes
