"""A trimmed tokenizer writes text whose tokens are kept as before, and other text with tokens that are kept."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from checkpoints.errors import UserError
from stages.distillation.trimmed_vocabulary import (
    begin_as_reduced,
    exchange_tokens,
    fit_vocabulary,
    keep_tokens,
    teacher_ids,
    trimmed,
)
from tests.conftest import sentences, tiny_config

TEXTS = [
    f"{text} unaffordable rearrangements, naïve Straße 电影 {i}" for i, (text, _) in enumerate(sentences(60))
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of some 300 tokens, learned from the texts, framed as RoBERTa's or BERT's."""
    common = {"special_tokens": SPECIAL, "show_progress": False}
    if kind == "wordpiece":
        backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
        backend.normalizer, backend.pre_tokenizer = (
            normalizers.BertNormalizer(),
            pre_tokenizers.BertPreTokenizer(),
        )
        trainer = trainers.WordPieceTrainer(vocab_size=300, **common)
        backend.decoder = decoders.WordPiece()
    elif kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet, **common)
    elif kind == "bpe":
        backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder("</w>")
        trainer = trainers.BpeTrainer(vocab_size=300, end_of_word_suffix="</w>", **common)
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", **common)
    backend.train_from_iterator(TEXTS, trainer)
    if kind == "bytes":
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    else:
        frame = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
        backend.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", frame)
    names = dict(
        zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL, strict=True)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=99,
        **names,
    )


def frequencies(tokenizer, texts) -> np.ndarray:
    ids = np.concatenate([tokenizer(text)["input_ids"] for text in texts])
    return np.bincount(ids, minlength=len(tokenizer)).astype(float)


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "bpe", "unigram"])
def test_text_of_kept_tokens_is_written_as_before_and_other_text_with_kept_tokens(kind, tmp_path):
    teacher = tokenizer_of(kind)
    some = [text for text, _ in sentences(60)]
    counts = frequencies(teacher, some)
    used = int((counts > 0).sum())
    whole = trimmed(teacher, counts, len(teacher))
    assert len(whole) < len(teacher)  # of unaffordable rearrangements nothing is used
    everything = frequencies(teacher, TEXTS)
    size = len(teacher) - 20 if kind == "bytes" else int((everything > 0).sum()) - 10  # all bytes are kept
    trimmed(teacher, everything, size).save_pretrained(tmp_path)
    small = AutoTokenizer.from_pretrained(tmp_path)
    assert len(small) <= size and small.model_max_length == 99
    for own, texts, same in ((whole, some, True), (small, TEXTS, False)):
        table = teacher_ids(own, teacher)
        assert own.get_vocab().keys() < teacher.get_vocab().keys() and sorted(
            own.get_vocab().values()
        ) == list(range(len(own)))
        assert [own.convert_ids_to_tokens(i) for i in own.all_special_ids] == [
            teacher.convert_ids_to_tokens(i) for i in teacher.all_special_ids
        ]
        written = 0
        for text, other in zip(texts, reversed(texts), strict=True):
            theirs, ours = (t(text, other)["input_ids"] for t in (teacher, own))
            assert table[ours].tolist() == theirs or not same
            written += table[ours].tolist() != theirs
            assert teacher.decode(table[ours]) == teacher.decode(theirs) == own.decode(ours)
            assert own.unk_token_id not in ours or teacher.unk_token_id in theirs
        assert bool(written) != same
    assert used > 30


def test_spare_tokens_fill_the_room_that_is_left_and_need_none():
    tokenizer = tokenizer_of("wordpiece")
    own = frequencies(tokenizer, TEXTS[:3])
    most = len(trimmed(tokenizer, own, len(tokenizer)))
    spare = [i for i in range(len(tokenizer)) if not own[i]]
    assert len(trimmed(tokenizer, own, most, spare=spare)) == most
    more = trimmed(tokenizer, own, most + 10, spare=spare)
    assert most < len(more) <= most + 10
    assert trimmed(tokenizer, own, most).get_vocab().keys() <= more.get_vocab().keys()


def test_what_cannot_be_trimmed_is_refused():
    teacher = tokenizer_of("wordpiece")
    with pytest.raises(
        UserError, match="vocabulary: 20 has no room for the [0-9]+ special tokens and characters"
    ):
        trimmed(teacher, frequencies(teacher, TEXTS), 20)
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="[PAD]"))
    with pytest.raises(UserError, match="vocabulary: a vocabulary of type WordLevel cannot be trimmed"):
        trimmed(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]"), np.ones(2), 2)
    with pytest.raises(UserError, match="of the student's .* are not among the teacher's"):
        teacher_ids(tokenizer_of("unigram"), teacher)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_student_keeps_or_reduces_its_teachers_embeddings(kind, tmp_path):
    tokenizer = tokenizer_of("bytes")
    own = trimmed(tokenizer, frequencies(tokenizer, TEXTS), len(tokenizer) - 30)
    kept = teacher_ids(own, tokenizer)
    config = tiny_config(kind)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    torch.manual_seed(0)
    teacher, copy = AutoModel.from_config(config).eval(), AutoModel.from_config(config).eval()
    copy.load_state_dict(teacher.state_dict())
    keep_tokens(copy, own, kept)
    copy.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    batch = own(TEXTS[:3], padding=True, return_tensors="pt")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    theirs = inputs | {"input_ids": torch.from_numpy(kept)[batch["input_ids"]]}
    with torch.no_grad():
        expected = teacher(**theirs)[0]
        torch.testing.assert_close(copy(**inputs)[0], expected)
        torch.testing.assert_close(loaded(**inputs)[0], expected)

    narrow = AutoModel.from_config(fit_vocabulary(tiny_config(kind, width=8, heads=2), own))
    begin_as_reduced(narrow, teacher, kept)
    table = teacher.get_input_embeddings().weight.detach()[kept].double().numpy()
    left, values, _ = np.linalg.svd(table, full_matrices=False)
    reduced = narrow.get_input_embeddings().weight.detach().double().numpy()
    np.testing.assert_allclose(
        reduced @ reduced.T, (left[:, :8] * values[:8] ** 2) @ left[:, :8].T, atol=1e-5
    )
    wide = AutoModel.from_config(fit_vocabulary(tiny_config(kind, width=24, heads=2), own))
    drawn = wide.get_input_embeddings().weight.detach().clone()
    begin_as_reduced(wide, teacher, kept)
    reduced = wide.get_input_embeddings().weight.detach()
    assert torch.equal(reduced[:, 16:], drawn[:, 16:])
    np.testing.assert_allclose((reduced[:, :16] @ reduced[:, :16].T).numpy(), table @ table.T, atol=1e-5)


def test_a_student_gets_other_tokens_whose_embeddings_follow_from_the_teachers(tmp_path):
    tokenizer = tokenizer_of("bytes")
    size = len(tokenizer)
    torch.manual_seed(0)
    teacher = AutoModel.from_config(fit_vocabulary(tiny_config("bert"), tokenizer))
    weight_TE = teacher.get_input_embeddings().weight.detach()
    known, tokens = np.arange(0, size - 20), np.arange(10, size)
    student = AutoModel.from_config(fit_vocabulary(tiny_config("bert", width=8, heads=2), tokenizer))
    matrix_ED = torch.randn(weight_TE.shape[1], 8)
    learned_WD = (weight_TE @ matrix_ED + 0.5)[known]
    learned_WD[20] += 1.0  # a token that the student has learned otherwise
    student.set_input_embeddings(torch.nn.Embedding.from_pretrained(learned_WD))
    exchange_tokens(student, tokenizer, tokens, known, teacher)
    got_VD = student.get_input_embeddings().weight.detach()
    assert torch.equal(got_VD[:-20], learned_WD[10:]), "known tokens keep their embeddings"
    expected = (weight_TE @ matrix_ED + 0.5)[size - 20 :]
    assert (got_VD[-20:] - expected).abs().mean() < 0.2 * expected.std(), "new ones are made of the teacher's"
    assert student.get_input_embeddings().weight.requires_grad
