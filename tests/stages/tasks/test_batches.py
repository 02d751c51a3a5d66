"""Rows on disk, the order of an epoch, its division over ranks, and the tensors."""

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.errors import UserError
from stages.tasks.batches import normalizers
from stages.tasks.row_maker import Frame
from stages.tasks.token_rows import TokenRows, write_task_rows
from stages.tasks.types import Split
from stages.training import data_order
from stages.training.data_order import epoch_batches, shard_batch
from tests.conftest import write_corpus_rows

WORDS = [chr(97 + n // 26) + chr(97 + n % 26) for n in range(200)]
SPECIALS = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "roberta": ["<pad>", "<unk>", "<s>", "</s>"]}
PAIR = {"bert": "[CLS] $A [SEP] $B:1 [SEP]:1", "roberta": "<s> $A </s> </s> $B </s>"}


@pytest.fixture(scope="module", params=["bert", "roberta"])
def tokenizer(request):
    return build(request.param)


def build(kind):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pad, unk, cls, sep = SPECIALS[kind]
    vocab = [*SPECIALS[kind], *WORDS, *(f"##{word}" for word in WORDS), "a"]
    vocab = {word: number for number, word in enumerate(vocab)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token=unk))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=PAIR[kind], special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])]
    )
    names = {"pad_token": pad, "unk_token": unk, "cls_token": cls, "sep_token": sep}
    if kind == "bert":
        names["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def text(*numbers):
    return " ".join(WORDS[n % len(WORDS)] for n in numbers)


def test_batches_are_as_wide_as_a_multiple_but_no_wider_than_the_longest_row(tmp_path):
    split = Split([text(*range(n)) for n in (3, 6, 9, 17)], None, [0, 1, 0, 1])
    write_task_rows([split], build("bert"), 32, tmp_path)
    plain, rows = TokenRows.open(tmp_path), TokenRows.open(tmp_path, width_multiple=8)
    assert rows.lengths.tolist() == [5, 8, 11, 19]
    for indices, width, padded in (([0, 1], 8, True), ([1], 8, False), ([2], 16, True), ([3], 19, False)):
        ours, expected = (kind.collate(indices, np.ones(len(indices))) for kind in (rows, plain))
        assert ours.input_ids.shape[1] == width and ours.padded == padded
        length = expected.input_ids.shape[1]
        for name, values in expected.inputs.items():
            assert ours.inputs[name][:, :length].equal(values) and not ours.inputs[name][:, length:].any()
    assert rows.collate([1, 1], np.array([1.0, 0.0])).padded  # a row of weight zero counts as padding


def test_task_rows_equal_the_tokenizers_own_batch(tmp_path, tokenizer):
    lengths = [(3, 4), (1, 30), (30, 2), (20, 20), (5, 5)]
    split = Split(
        [text(*range(a)) for a, _ in lengths], [text(*range(b)) for _, b in lengths], [0, 1, 0, 1, 1]
    )
    rows = write_task_rows([split], tokenizer, 16, tmp_path)
    assert (len(rows), rows.truncated) == (5, 3)
    assert rows.lengths.max() == 16
    batch = rows.collate(np.arange(5), np.ones(5))
    expected = tokenizer(
        split.text_a, split.text_b, truncation=True, max_length=16, padding=True, return_tensors="pt"
    )
    assert batch.inputs.keys() == expected.keys()
    assert all(batch.inputs[name].equal(values) for name, values in expected.items())
    assert batch.labels.tolist() == split.labels


def test_single_sentences_and_scores(tmp_path, tokenizer):
    split = Split([text(1, 2), text(3)], None, [0.5, 4.0])
    rows = write_task_rows([split], tokenizer, 16, tmp_path)
    batch = rows.collate([1, 0], [1, 0])
    assert batch.input_ids.shape == (2, 4)
    assert "token_type_ids" not in batch.inputs or not batch.inputs["token_type_ids"].any()
    assert batch.labels.tolist() == [4.0, 0.5]
    assert (batch.rows.tolist(), batch.weight.tolist()) == ([1, 0], [1.0, 0.0])
    assert batch.to("cpu").input_ids.equal(batch.input_ids)


def test_corpus_rows(tmp_path, tokenizer):
    lengths = [5, 15, 16, 40, 25 + 10, 100]
    documents = [text(*range(n)) for n in lengths]
    rows = write_corpus_rows(documents, tokenizer, 29, tmp_path)
    width = 3 if tokenizer.cls_token == "[CLS]" else 4
    room = 29 - width
    kept = [n if n <= room else n - (n % room if n % room < 16 else 0) for n in lengths]
    assert (rows.lengths - np.where(rows.second > 0, width, 2)).sum() == sum(kept)
    assert rows.lengths.max() == 29
    for row in range(len(rows)):
        ids = rows.tokens[rows.offsets[row] : rows.offsets[row + 1]]
        assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
        second = rows.second[row]
        if second:
            part = (second - 1 - (width - 2)) / (len(ids) - width)
            assert 0.25 - 1 / 16 <= part <= 0.75
            assert ids[second - 1] == tokenizer.sep_token_id
            assert ids[second] != tokenizer.sep_token_id
    assert (rows.second[:3] > 0).tolist() == [False, False, True]


def plain_corpus_rows(documents, tokenizer, max_length, limit):
    """(tokens, where segment B starts) of each row, by plain loops."""
    frame, rows = Frame.of(tokenizer), []
    room = max_length - frame.width
    for encoding in tokenizer(documents, add_special_tokens=False).encodings:
        for start in range(0, len(encoding.ids), room):
            ids, words = encoding.ids[start : start + room], encoding.word_ids[start : start + room]
            if start and len(ids) < 16 or limit and sum(len(row) for row, _ in rows) >= limit:
                continue
            if len(ids) < 16:
                rows.append((frame.before + ids + frame.after, 0))
                continue
            cuts = range(len(ids) // 4, 3 * len(ids) // 4 + 1)
            starts = [cut for cut in cuts if words[cut] != words[cut - 1]] or cuts
            cut = starts[int(random.Random(len(rows)).random() * len(starts))]
            row = frame.before + ids[:cut] + frame.between + ids[cut:] + frame.after
            rows.append((row, len(frame.before) + cut + len(frame.between)))
    return rows


@pytest.mark.parametrize("limit", [None, 500])
@pytest.mark.parametrize("max_length", [8, 29, 64])
def test_corpus_rows_are_those_of_plain_loops(tmp_path, tokenizer, max_length, limit):
    generator = np.random.default_rng(max_length)
    documents = ["\x01", " ".join(["", *("aa" * 60 for _ in range(3))])]  # no token; words that fill rows
    for size in (1, 15, 16, 17, 30, 100, 400):
        words = ["".join(WORDS[n : n + generator.integers(1, 9)]) for n in generator.integers(0, 190, size)]
        documents.append(" ".join(words) + "[SEP] a, ##ab. ?")
    rows = write_corpus_rows(documents, tokenizer, max_length, tmp_path, limit)
    expected = plain_corpus_rows(documents, tokenizer, max_length, limit)
    found = [rows.tokens[a:b].tolist() for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)]
    assert found == [row for row, _ in expected]
    assert rows.second.tolist() == [second for _, second in expected]
    assert rows.lengths.tolist() == [len(row) for row, _ in expected]


def test_segments_begin_at_words(tmp_path):
    tokenizer = build("bert")
    documents = ["".join(WORDS[n : n + 4]) + " " + text(n) for n in range(50)]
    rows = write_corpus_rows([" ".join(documents)], tokenizer, 64, tmp_path)
    seconds = rows.tokens[rows.offsets[:-1] + rows.second]
    assert all(not word.startswith("##") for word in tokenizer.convert_ids_to_tokens(seconds.tolist()))


def test_corpus_stream_limit_and_progress(tmp_path, tokenizer):
    seen = []
    endless = (text(*range(n, n + 20)) * 500 for n in iter(int, 1))
    rows = write_corpus_rows(endless, tokenizer, 32, tmp_path, limit=1000, progress=seen.append)
    assert 1000 <= rows.counts["tokens"] < 1032
    assert seen == [rows.counts["tokens"]]
    assert rows.labels is None
    again = TokenRows.open(tmp_path)
    assert (again.tokens == rows.tokens).all()


def test_refusals(tmp_path, tokenizer):
    with pytest.raises(UserError, match="100% of the tokens are .*fits the tokenizer.s vocabulary"):
        write_corpus_rows(["zzz yyy xxx"], tokenizer, 32, tmp_path)
    assert not (tmp_path / "rows.json").exists()
    with pytest.raises(UserError, match="no text to tokenize"):
        write_task_rows([Split([], None, [])], tokenizer, 32, tmp_path)
    with pytest.raises(UserError, match="max_length: 4 tokens have no room for two segments"):
        write_corpus_rows(["aa"], tokenizer, 4, tmp_path)


def test_broken_corpus_is_refused_before_its_end(tmp_path, tokenizer):
    def stream():
        for _ in range(3):
            yield "zz " * 400_000
        pytest.fail("read on")

    with pytest.raises(UserError, match="tokens"):
        write_corpus_rows(stream(), tokenizer, 128, tmp_path)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 128), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 5))
def test_every_row_exactly_once(lengths, batch_size, epoch):
    lengths = np.array(lengths)
    batches = epoch_batches(lengths, batch_size, 7, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
    again = epoch_batches(lengths, batch_size, 7, epoch)
    assert all((a == b).all() for a, b in zip(batches, again, strict=True))


def test_order_differs_by_seed_and_epoch_and_groups_lengths():
    lengths = np.random.default_rng(0).integers(5, 128, 4000)
    orders = [epoch_batches(lengths, 16, seed, epoch) for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    first, *others = (np.concatenate(order).tolist() for order in orders)
    assert all(first != other for other in others)
    padded = sum(lengths[batch].max() * len(batch) for batch in orders[0])
    assert padded < 1.1 * lengths.sum()


def plain_order(lengths, batch_size, seed, epoch):
    """The order of few rows, written separately."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
    order, batches = random.permutation(len(lengths)).tolist(), []
    for start in range(0, len(order), 50 * batch_size):
        pool = sorted(order[start : start + 50 * batch_size], key=lambda row: lengths[row])
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    return [batches[place] for place in random.permutation(len(batches))]


@pytest.fixture
def small_buffers(monkeypatch):
    monkeypatch.setattr(data_order, "BUFFER_ROWS", 1024)
    monkeypatch.setattr(data_order, "BLOCK_ROWS", 64)


@pytest.mark.parametrize("rows", [1023, 1024])
def test_rows_that_fit_a_buffer_keep_their_order(small_buffers, rows):
    lengths = np.random.default_rng(0).integers(5, 128, rows)
    found = epoch_batches(lengths, 7, 3, 2)
    assert [batch.tolist() for batch in found] == plain_order(lengths, 7, 3, 2)


@pytest.mark.parametrize("rows, batch_size", [(1025, 7), (6400, 16), (9999, 100), (5000, 2000)])
def test_more_rows_are_ordered_buffer_by_buffer(small_buffers, rows, batch_size):
    lengths = np.random.default_rng(0).integers(5, 128, rows)
    batches = list(epoch_batches(lengths, batch_size, 7, 0))
    assert len(batches) == -(-rows // batch_size)
    assert sorted(np.concatenate(batches)) == list(range(rows))
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
    again = epoch_batches(lengths, batch_size, 7, 0)
    for place in (len(batches) - 1, 0, len(batches) // 2):  # a resumed run asks for any first
        assert again[place].tolist() == batches[place].tolist()
    others = [epoch_batches(lengths, batch_size, *of) for of in ((7, 1), (8, 0))]
    assert all(np.concatenate(list(o)).tolist() != np.concatenate(batches).tolist() for o in others)
    if batch_size < 100:
        padded = sum(lengths[batch].max() * len(batch) for batch in batches)
        assert padded < 1.15 * lengths.sum()
        first = np.concatenate(batches[: 1024 // batch_size])  # of a few blocks, which lie anywhere
        assert len(set(first // 64)) <= 18 and (first.max() - first.min() > 2048 or rows < 2048)


def test_memory_of_the_order_does_not_grow_with_the_rows(small_buffers):
    peaks = []
    for rows in (10**5, 10**6):
        lengths = np.broadcast_to(np.int32(9), rows)  # takes no memory itself
        tracemalloc.start()
        batches = epoch_batches(lengths, 16, 1, 0)
        for place in range(0, len(batches), 50):
            batches[place]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Three numbers of 8 bytes a block of 64 rows; the blocks of 2**14 rows of 10**8 rows take 150 kB.
    assert peaks[1] - peaks[0] < 1.5 * (10**6 - 10**5) / 64 * 3 * 8
    assert peaks[0] < 10**6


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4))
def test_shares_make_up_the_batch(size, world, micro_batches):
    rows = np.arange(100, 100 + size)
    shares = [shard_batch(rows, world, rank, micro_batches) for rank in range(world)]
    assert all(len(mine) == micro_batches for mine in shares)
    parts = [part for mine in shares for part in mine]
    assert all(len(rows) == len(weights) > 0 for rows, weights in parts)
    assert sorted(np.concatenate([rows[weights > 0] for rows, weights in parts])) == rows.tolist()


def test_normalizers():
    per_row = {"rows": 2, "tokens": 5, "pairs": 13, "targets": 2, "labels": 2}
    assert normalizers(np.array([2, 3], np.int32)) == per_row
