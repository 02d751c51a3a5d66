"""The masked-LM objective against a plain reference, and what is held out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stages.distillation.models import ModelSource, load_masked_lm, load_tokenizer
from stages.masked_lm import MaskedPieces, accuracy
from stages.rows import corpus_rows
from stages.stage import Stage
from stages.tasks.batches import collate
from tests.conftest import make_corpus, make_encoder


@pytest.fixture
def stage(tmp_path, world) -> Stage:
    """A stage with a corpus of 120 documents."""
    path = make_corpus(tmp_path / "corpus.txt", 120)
    files = {"reader": "files", "version": 1, "files": {"corpus.txt": str(path)}}
    inputs = {"corpus": {"name": "corpus", "identity": files}}
    job = SimpleNamespace(precision="fp32")
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
    batch = collate(rows, [0, 1, 2, 3], np.array([1.0, 1, 1, 0]))
    objective = MaskedPieces(model.eval(), tokenizer, 0.3)
    torch.manual_seed(5)
    term = objective(batch, None)["masked_lm"]

    torch.manual_seed(5)
    drawn = torch.rand(batch.input_ids.shape)
    ids, loss, masks = batch.input_ids.clone(), 0.0, []
    for row in range(3):
        for place in range(int(batch.attention_mask[row].sum())):
            special = int(ids[row, place]) in tokenizer.all_special_ids
            if drawn[row, place] < 0.3 and not special:
                masks.append((row, place))
                ids[row, place] = tokenizer.mask_token_id
    types = (
        {"token_type_ids": batch.token_type_ids} if getattr(model.config, "type_vocab_size", 0) > 1 else {}
    )
    logits = model(ids, attention_mask=batch.attention_mask, **types).logits
    for row, place in masks:
        loss += F.cross_entropy(logits[row, place], batch.input_ids[row, place]).item()
    assert masks and term.sum.item() == pytest.approx(loss / 0.3, rel=1e-5)
    assert term.per == "tokens" and term.weight == 1
    before = accuracy(stage, objective, rows)
    assert accuracy(stage, objective, rows) == before


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
