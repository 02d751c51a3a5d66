"""Students and teachers that nothing in the product was made for. All that they need is in this file."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast
from transformers.modeling_outputs import ModelOutput

from stages.distillation import CaptureSpec, ModelOutputs
from stages.distillation.distillation import Distillation
from stages.distillation.losses import GoldLabels, SoftLabels
from stages.distillation.losses.base import Loss, LossTerm
from stages.distillation.outputs import read
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.batches import Batch
from stages.tasks.token_rows import TokenRows, write_task_rows
from stages.tasks.types import Split
from stages.training.job import Job
from tests.conftest import make_tokenizer, sentences, tiny_config
from tests.stages.foreign import assert_resumes, make_stage

CPU = torch.device("cpu")
TEXTS, LABELS = (list(column) for column in zip(*sentences(48), strict=True))


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each letter: another vocabulary and other lengths than the words' tokenizer has."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: i for i, token in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz0123456789"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")]
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def classifier(seed: int, **sizes) -> nn.Module:
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(tiny_config(**sizes))


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> TokenRows:
    path = tmp_path_factory.mktemp("rows")
    tokenizer = make_tokenizer(path / "tokenizer")
    return write_task_rows([Split(TEXTS, None, LABELS)], tokenizer, 32, path / "words")


@dataclass
class ReadTwice:
    """The same texts in the tokens of the teacher and of the student."""

    teacher: TokenRows
    student: TokenRows

    def __post_init__(self):
        self.lengths = self.student.lengths

    def __len__(self) -> int:
        return len(self.student)

    def normalizers(self, indices):
        return self.student.normalizers(indices)

    def collate(self, indices, weights) -> Batch:
        mine, theirs = self.student.collate(indices, weights), self.teacher.collate(indices, weights)
        inputs = {f"student_{name}": tensor for name, tensor in mine.inputs.items()}
        inputs |= {f"teacher_{name}": tensor for name, tensor in theirs.inputs.items()}
        return replace(mine, inputs=inputs)


def test_a_student_whose_tokens_are_another_tokenizers(tmp_path, world, rows):
    letters = letters_tokenizer()
    both = ReadTwice(rows, write_task_rows([Split(TEXTS, None, LABELS)], letters, 64, tmp_path / "letters"))
    assert both.teacher.lengths.sum() != both.student.lengths.sum()
    spec = CaptureSpec(logits=True)
    teacher = FrozenTeacher(classifier(5), spec, CPU)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}

    def make(directory):
        torch.manual_seed(0)
        student = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=len(letters), **sizes))
        return Job(make_stage(directory), Distillation(student, [SoftLabels()]), both, targets=teacher)

    assert_resumes(tmp_path / "runs", make)
    batch = both.collate(np.arange(4), np.ones(4, np.float32))
    alone = rows.collate(np.arange(4), np.ones(4, np.float32))
    assert torch.equal(teacher(batch).logits_BC, read(teacher.model.eval(), alone, spec).logits_BC)


@dataclass
class TwoHeads(ModelOutput):
    logits: Tensor | None = None
    sentiment: Tensor | None = None
    length: Tensor | None = None


class Bag(nn.Module):
    """A bag of embeddings under two named heads; it is no model of transformers."""

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, width)
        self.sentiment, self.length = nn.Linear(width, 2), nn.Linear(width, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> TwoHeads:
        mean_BW = (self.embeddings(input_ids) * attention_mask[..., None]).sum(1) / attention_mask.sum(
            1, True
        )
        sentiment = self.sentiment(mean_BW)
        return TwoHeads(sentiment, sentiment, self.length(mean_BW))


class NamedHeads(Loss):
    """Mean squared difference of named heads."""

    def __init__(self, *names: str):
        super().__init__()
        self.names = names
        self.student_capture = self.teacher_capture = CaptureSpec(named=frozenset(names))

    def terms(self, student, teacher, batch):
        return {
            name: LossTerm(
                batch.sum((student.named[name] - teacher.named[name]).square().mean(-1)), "rows", self.weight
            )
            for name in self.names
        }


def test_a_loss_that_compares_named_heads(tmp_path, world, rows):
    torch.manual_seed(1)
    teacher = Bag(rows.counts["vocabulary"], 16).eval()
    loss = NamedHeads("sentiment", "length")

    def targets(batch: Batch) -> ModelOutputs:
        with torch.no_grad():
            return read(teacher, batch, loss.teacher_capture, "teacher")

    def make(directory):
        torch.manual_seed(0)
        student = Distillation(Bag(rows.counts["vocabulary"], 4), [NamedHeads("sentiment", "length")])
        return Job(make_stage(directory, {"learning_rate": 0.1}), student, rows, targets)

    job = assert_resumes(tmp_path, make)
    batch = rows.collate(np.arange(48), np.ones(48, np.float32))
    torch.manual_seed(0)
    fresh = Bag(rows.counts["vocabulary"], 4)
    before, after = (
        loss(read(m, batch, loss.student_capture), targets(batch)) for m in (fresh, job.model.student)
    )
    assert after < before / 2


class Ensemble:
    """The weighted mean of the distributions of several teachers, as logits."""

    def __init__(self, teachers: list[FrozenTeacher], weights: list[float]):
        self.teachers, self.weights = teachers, weights

    def __call__(self, batch: Batch) -> ModelOutputs:
        mixed = sum(
            weight * teacher(batch).logits_BC.softmax(-1)
            for teacher, weight in zip(self.teachers, self.weights, strict=True)
        )
        return ModelOutputs(logits_BC=mixed.log())


class Corrected:
    """A teacher that is given the labels: where it is wrong, it answers the label."""

    def __init__(self, teacher: FrozenTeacher):
        self.teacher = teacher

    def __call__(self, batch: Batch) -> ModelOutputs:
        logits = self.teacher(batch).logits_BC
        wrong_B1 = (logits.argmax(-1) != batch.labels)[:, None]
        return ModelOutputs(
            logits_BC=torch.where(wrong_B1, 9.0 * functional.one_hot(batch.labels, 2), logits)
        )


@pytest.mark.parametrize("kind", ["ensemble", "corrected"])
def test_teachers_of_ones_own(tmp_path, world, rows, kind):
    teachers = [FrozenTeacher(classifier(seed), CaptureSpec(logits=True), CPU) for seed in (5, 6)]
    teacher = Ensemble(teachers, [0.75, 0.25]) if kind == "ensemble" else Corrected(teachers[0])

    def make(directory):
        student = classifier(0, layers=2, width=8)
        return Job(make_stage(directory), Distillation(student, [SoftLabels(), GoldLabels()]), rows, teacher)

    assert_resumes(tmp_path, make)
    batch = rows.collate(np.arange(8), np.ones(8, np.float32))
    given = teacher(batch).logits_BC.softmax(-1)
    if kind == "corrected":
        assert torch.equal(given.argmax(-1), batch.labels)
    else:
        first, second = (t(batch).logits_BC.softmax(-1) for t in teachers)
        torch.testing.assert_close(given, 0.75 * first + 0.25 * second)
