"""Masks, the losses behind them against plain references, and what is held out."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch.nn import functional as F

from checkpoints.errors import UserError
from stages.distillation.distillation import Distillation
from stages.distillation.losses import build
from stages.distillation.models import ModelSource, load_masked_lm, load_tokenizer
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.evaluation.masked_accuracy import accuracy
from stages.tasks.batches import Batch
from stages.tasks.masking import Masking, uniform
from stages.training.cached_rows import corpus_rows
from stages.training.data_order import epoch_batches, shard_batch
from stages.training.options import Job
from stages.training.stage import Stage
from tests.conftest import make_corpus, make_encoder


@pytest.fixture
def stage(tmp_path, world) -> Stage:
    """A stage with a corpus of 120 documents."""
    path = make_corpus(tmp_path / "corpus.txt", 120)
    files = {"reader": "files", "version": 1, "files": {"corpus.txt": str(path)}}
    inputs = {"corpus": {"name": "corpus", "identity": files}}
    job = Job(precision="fp32")
    return Stage(
        "masked_lm",
        "masked_lm",
        tmp_path / "runs" / "r" / "masked_lm",
        {},
        inputs,
        "",
        job,
        torch.device("cpu"),
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_the_loss_is_the_full_models_cross_entropy_at_the_masks(tmp_path, stage, kind):
    source = ModelSource(str(make_encoder(tmp_path / kind, kind)))
    tokenizer = load_tokenizer(source)
    model, has_head = load_masked_lm(source)
    assert not has_head
    rows = corpus_rows(stage, tokenizer, 32, 0)
    batch = rows.collate([0, 1, 2, 3], np.array([1.0, 1, 1, 0]))
    masking = Masking(tokenizer, 0.3, seed=5)
    rows = replace(rows, masking=masking)
    words = build("masked_words", None, None, mlm_probability=0.3)
    term = Distillation(model.eval(), [words])(masking(batch, epoch=2), None)["masked_words"]

    drawn = uniform(5, 2, batch.rows, batch.input_ids.shape[1])
    ids, loss, masks, words_of_rows = batch.input_ids.clone(), 0.0, [], 0
    for row in range(3):
        for place in range(int(batch.attention_mask[row].sum())):
            special = int(ids[row, place]) in tokenizer.all_special_ids
            words_of_rows += not special
            if drawn[row, place] < 0.3 and not special:
                masks.append((row, place))
                ids[row, place] = tokenizer.mask_token_id
    types = (
        {"token_type_ids": batch.inputs["token_type_ids"]}
        if getattr(model.config, "type_vocab_size", 0) > 1
        else {}
    )
    logits = model(ids, attention_mask=batch.attention_mask, **types).logits
    for row, place in masks:
        loss += F.cross_entropy(logits[row, place], batch.input_ids[row, place]).item()
    assert masks and term.sum.item() == pytest.approx(loss, rel=1e-5)
    assert term.normalizer == "masked" and term.weight == 1
    assert rows.normalizers(np.arange(3))["masked"] == pytest.approx(0.3 * words_of_rows)
    before = accuracy(stage, model, masking, rows)
    assert accuracy(stage, model, masking, rows) == before


def splitmix64(counter: int, key: int) -> int:
    """The counter-th number of the generator whose state begins as `key`."""
    z = (key + counter * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_random_numbers_are_splitmix64_over_rows_and_then_over_positions():
    key = int(np.random.SeedSequence((3, 7)).generate_state(1, np.uint64)[0])
    rows = [0, 5, 2**33]
    expected = [[(splitmix64(i, splitmix64(row, key)) >> 11) / 2**53 for i in range(9)] for row in rows]
    assert uniform(3, 7, torch.tensor(rows), 9).tolist() == expected
    many = uniform(3, 7, torch.arange(2000), 100)
    assert 0 <= many.min() and many.max() < 1
    for p in (0.01, 0.15, 0.5):
        drawn = (many < p).double()
        assert drawn.mean() == pytest.approx(p, abs=4 * (p * (1 - p) / many.numel()) ** 0.5)
        assert drawn.mean(0).std() < 1.5 * (p * (1 - p) / 2000) ** 0.5  # no position is preferred
    assert abs(torch.corrcoef(many[:, :2].T)[0, 1]) < 0.1  # neighbours are independent


def test_masks_depend_on_seed_epoch_and_row_not_on_ranks_or_micro_batches(tmp_path, stage):
    tokenizer = load_tokenizer(ModelSource(str(make_encoder(tmp_path / "bert"))))
    rows = corpus_rows(stage, tokenizer, 32, 0)

    def masks(world: int, micro_batches: int, seed: int = 1, epoch: int = 0) -> dict[int, list[bool]]:
        """Of each row, as the ranks of a job see them."""
        masking, found = Masking(tokenizer, 0.15, seed), {}
        for global_rows in epoch_batches(rows.lengths, 20, 1, epoch):
            for rank in range(world):
                for indices, weights in shard_batch(global_rows, world, rank, micro_batches):
                    batch = masking(rows.collate(indices, weights), epoch)
                    assert not (batch.labels[batch.mask_BL == 0] >= 0).any()
                    for row, weight, labels in zip(batch.rows.tolist(), weights, batch.labels, strict=True):
                        if weight:
                            found[row] = (labels[: rows.lengths[row]] >= 0).tolist()
        return found

    one = masks(1, 1)
    of_left = replace(rows, counts=rows.counts | {"left": True})
    for some in (np.arange(20), np.arange(5)):  # of other widths
        batch = Masking(tokenizer, 0.15, 1)(of_left.collate(some, np.ones(len(some))), 0)
        width = batch.labels.shape[1]
        for row in some:
            assert (batch.labels[row, of_left.span(row, width)] >= 0).tolist() == one[row]
    assert len(one) == len(rows) and one == masks(2, 1) == masks(1, 3) == masks(2, 7)
    words = (~np.isin(rows.tokens, tokenizer.all_special_ids)).sum()
    chosen = sum(map(sum, one.values()))
    assert chosen / words == pytest.approx(0.15, abs=0.01)
    counted = replace(rows, masking=Masking(tokenizer, 0.15, 1)).normalizers(np.arange(len(rows)))["masked"]
    assert counted == pytest.approx(0.15 * words)
    for other in (masks(1, 1, epoch=1), masks(1, 1, seed=2)):
        assert sum(one[row] != other[row] for row in one) > 0.9 * len(one)


@pytest.mark.parametrize("t_squared", [False, True])
def test_masked_soft_labels_equal_a_loop_over_masks_and_words(t_squared):
    labels = torch.tensor([[-100, 3, -100], [0, -100, 2]])
    ones = torch.ones_like(labels)
    batch = Batch(
        {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones},
        labels,
        torch.ones(2),
        torch.arange(2),
    )
    z_s, z_t = torch.randn(3, 5), torch.randn(3, 5)
    loss = build(
        {"masked_soft_labels": {"temperature": 2.0, "t_squared": t_squared, "weight": 5}},
        None,
        None,
        mlm_probability=0.25,
    )
    term = loss.terms(ModelOutputs(vocabulary_NV=z_s), ModelOutputs(vocabulary_NV=z_t), batch)[
        "masked_soft_labels"
    ]
    expected = 0.0
    for mask in range(3):
        p, q = (np.exp(z[mask].double().numpy() / 2.0) for z in (z_t, z_s))
        p, q = p / p.sum(), q / q.sum()
        expected += sum(p[word] * (np.log(p[word]) - np.log(q[word])) for word in range(5))
    assert term.sum.item() == pytest.approx((4 if t_squared else 1) * expected, rel=1e-5)
    assert (term.normalizer, term.weight) == ("masked", 5)


def test_what_is_read_at_masks_needs_masks():
    for name in ("masked_words", "masked_soft_labels"):
        with pytest.raises(
            UserError, match=f"losses: '{name}' reads masked tokens, and none are masked; give"
        ):
            build(name, None, None)


def around(tokenizer, kind: str):
    """The tokenizer with another layout of its rows."""
    if kind == "pairs end without a mark":
        marks = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", pair="[CLS] $A [SEP] $B", special_tokens=marks
        )
    if kind == "padded on the left":
        tokenizer.padding_side = "left"
    if (
        kind == "marks that are not called special"
    ):  # as of a config without the names of cls_token and sep_token
        tokenizer.cls_token = tokenizer.sep_token = None
        assert not {2, 3} & set(tokenizer.all_special_ids)
    return tokenizer


@pytest.mark.parametrize(
    "kind", ["BERT's", "pairs end without a mark", "padded on the left", "marks that are not called special"]
)
def test_no_special_token_is_masked_or_counted_in_any_layout(tmp_path, stage, kind):
    source = ModelSource(str(make_encoder(tmp_path / "bert")))
    tokenizer = around(load_tokenizer(source), kind)
    with open(tmp_path / "corpus.txt", "a") as corpus:
        corpus.write("\n\n".join(["", *["a warm film"] * 3]))  # too short for two segments
    rows, everywhere = corpus_rows(stage, tokenizer, 32, 0), Masking(tokenizer, 1.0, seed=1)
    assert (rows.second > 0).any() and (rows.second == 0).any()
    some = np.concatenate([np.flatnonzero(rows.second > 0)[:3], np.flatnonzero(rows.second == 0)[:3]])
    batch = everywhere(rows.collate(some, np.ones(6)), 0)
    texts = [
        i for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))) if token[0] != "["
    ]
    words = torch.isin(batch.labels, torch.tensor(texts))
    assert (
        torch.equal(words, batch.labels >= 0) and not torch.isin(batch.input_ids, torch.tensor(texts)).any()
    )
    assert replace(rows, masking=everywhere).normalizers(some)["masked"] == words.sum()


def test_a_single_layer_is_learned_without_a_projection():
    sizes = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2}
    pair = (SimpleNamespace(**sizes), SimpleNamespace(**sizes | {"num_hidden_layers": 6}))
    line = {"distance": "cosine", "projection": "none", "only": [3]}
    loss = build({"hidden_states": line}, *pair)
    assert loss.student_capture == CaptureSpec(hidden=frozenset({3}))
    assert loss.teacher_capture == CaptureSpec(hidden=frozenset({6})) and not list(loss.parameters())
    with pytest.raises(UserError, match=r"only: \[4\] must be a list of student layers from 0 to 3"):
        build({"hidden_states": line | {"only": [4]}}, *pair)
    wide = (pair[0], SimpleNamespace(**sizes | {"hidden_size": 12}))
    with pytest.raises(
        UserError, match="losses.hidden_states.projection: 'none' needs equal widths, not 8 .* 12"
    ):
        build({"hidden_states": line}, *wide)


def test_a_head_is_tied_saved_and_found_again(tmp_path, world):
    source = ModelSource(str(make_encoder(tmp_path / "encoder")))
    model, has_head = load_masked_lm(source)
    embeddings = model.get_input_embeddings().weight
    assert not has_head and model.get_output_embeddings().weight is embeddings
    model.save_pretrained(tmp_path / "whole")
    assert load_masked_lm(ModelSource(str(tmp_path / "whole")))[1]


def test_held_out_documents_are_not_trained_on(tmp_path, stage):
    tokenizer = load_tokenizer(ModelSource(str(make_encoder(tmp_path / "bert"))))
    parts = {part: corpus_rows(stage, tokenizer, 32, 0, held_out=part) for part in (True, False, None)}
    texts = {
        part: {tuple(rows.tokens[a:b]) for a, b in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)}
        for part, rows in parts.items()
    }
    assert len(parts[True]) + len(parts[False]) == len(parts[None]) and len(parts[True]) >= 3
    assert not texts[True] & texts[False]
