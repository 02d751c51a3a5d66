"""Losses on sentence vectors against plain loops; pooling, and pairs that are read apart."""

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from checkpoints.errors import UserError
from stages.distillation.losses import ContrastivePairs, ContrastiveVectors, MatchedVectors
from stages.distillation.models import ModelSource, load_classifier, load_config
from stages.distillation.outputs import ModelOutputs
from stages.distillation.sentence_vectors import apart, check_reads_apart, pool
from stages.tasks.batches import Batch
from stages.tasks.kinds import Classes, Similarity
from tests.conftest import make_encoder, make_tokenizer, tiny_config
from tests.stages.distillation.losses.test_layer_losses import pair

LENGTHS = [5, 2, 7, 4]


def drawn(width: int, seed: int) -> ModelOutputs:
    states = torch.randn(4, 7, width, generator=torch.Generator().manual_seed(seed))
    return ModelOutputs(hidden_BLW=dict.fromkeys(range(4), states))


def batch_of(rows: list[int], labels=None) -> Batch:
    mask = (torch.arange(7) < torch.tensor(LENGTHS)[:, None]).long()
    return Batch({"attention_mask": mask}, labels, torch.ones(4), torch.tensor(rows))


def means(outputs: ModelOutputs) -> np.ndarray:
    states = outputs.hidden_BLW[3].double().numpy()
    return np.array([states[i, :n].mean(0) for i, n in enumerate(LENGTHS)])


def test_contrastive_vectors_and_its_queue_against_a_loop():
    torch.manual_seed(0)
    loss = ContrastiveVectors(*pair(3), queue=6, scale=3.0)
    weight, bias = (p.detach().double().numpy() for p in loss.projection.parameters())
    queue: list[tuple[int, np.ndarray]] = []
    for step, rows in enumerate(([0, 1, 2, 3], [4, 5, 6, 7], [3, 4, 8, 9])):
        student, teacher = drawn(8, step), drawn(12, 9 + step)
        unit = [v / np.linalg.norm(v) for v in means(teacher)]
        expected = 0.0
        for i, row in enumerate(rows):
            query = weight @ means(student)[i] + bias
            query /= np.linalg.norm(query)
            keys = [*unit, *(key for of, key in queue if of != row)]
            scores = [3.0 * query @ key for key in keys]
            expected += math.log(sum(map(math.exp, scores))) - scores[i]
        found = loss.terms(student, teacher, batch_of(rows))["contrastive_vectors"]
        assert found.sum.item() == pytest.approx(expected, rel=1e-5) and found.normalizer == "rows"
        queue = [*zip(rows, unit, strict=True), *queue][:6]
    before = loss.queue_QW.clone()
    loss.eval().terms(drawn(8, 0), drawn(12, 0), batch_of([0, 1, 2, 3]))
    assert torch.equal(loss.queue_QW, before)


def test_matched_vectors_against_a_loop():
    torch.manual_seed(0)
    loss, student, teacher = MatchedVectors(*pair(3)), drawn(8, 0), drawn(12, 1)
    weight, bias = (p.detach().double().numpy() for p in loss.projection.parameters())
    expected = np.mean((means(student) @ weight.T + bias - means(teacher)) ** 2)
    found = loss(student, teacher, batch_of([0, 1, 2, 3]).attention_mask)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_pairs_against_a_loop():
    vectors = np.random.default_rng(0).normal(size=(2, 4, 5))
    a, b = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    labels = [1.0, 0.2, 0.8, 0.79]
    scores = 20 * a @ b.T
    losses = [np.log(np.exp(scores[i]).sum()) - scores[i, i] for i in (0, 2)]
    named = dict(zip(("first_BW", "second_BW"), torch.tensor(vectors), strict=True))
    found = ContrastivePairs()(ModelOutputs(named=named), labels=torch.tensor(labels))
    assert found.item() == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_pooling_of_left_padded_rows():
    states, mask = torch.arange(8.0).view(1, 4, 2), torch.tensor([[0, 1, 1, 1]])
    assert pool(states, mask, "cls").tolist() == [[2, 3]] and pool(states, mask, "mean").tolist() == [[4, 5]]


def test_the_texts_of_a_pair_are_what_the_tokenizer_makes_of_each_alone(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    first, second = ["the good film", "a plot"], ["it is poor", "of the actor and of the story"]
    check_reads_apart(tokenizer)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        ids, mask = apart(**tokenizer(first, second, padding=True, return_tensors="pt"))
        kept = [row[row_mask == 1].tolist() for row, row_mask in zip(ids, mask, strict=True)]
        assert kept == tokenizer([*first, *second])["input_ids"]
        assert ids.shape[1] == max(map(len, kept))
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    with pytest.raises(UserError, match="does not tell the two texts of a pair apart"):
        check_reads_apart(tokenizer)


def test_pooling_is_read_from_the_directory_and_another_one_is_refused(tmp_path):
    make_encoder(tmp_path / "teacher")
    source, folder = ModelSource(str(tmp_path / "teacher")), tmp_path / "teacher/1_Pooling"
    assert not hasattr(load_config(source), "sentence_pooling")
    folder.mkdir()
    for mode, wanted in (("cls_token", "cls"), ("mean_tokens", "mean")):
        (folder / "config.json").write_text(
            f'{{"pooling_mode_{mode}": true, "pooling_mode_max_tokens": false, "include_prompt": true}}'
        )
        assert load_classifier(source, Similarity()).pooling == wanted
    (folder / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    with pytest.raises(UserError, match="pooled by 'lasttoken'.* give a model with mean or cls alone$"):
        load_classifier(source, Similarity())
    (folder / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    names = ["models.Transformer", "models.Pooling", "base.modules.dense.Dense", "models.Normalize"]
    modules = [{"idx": i, "type": f"sentence_transformers.{name}"} for i, name in enumerate(names)]
    (tmp_path / "teacher/modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        UserError, match="pooled by 'mean, then Dense' .modules.json.* give a model with mean or cls"
    ):
        load_classifier(source, Similarity())
    load_classifier(source, Classes(("no", "yes")))  # reads no sentence vectors


def test_a_bare_encoder_is_not_taken_for_a_model_of_similarity(tmp_path):
    AutoModelForSequenceClassification.from_config(tiny_config()).base_model.save_pretrained(tmp_path)
    assert load_config(ModelSource(str(tmp_path))).architectures == ["BertModel"]
