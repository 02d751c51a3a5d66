"""Images and captions: the draw of false ones, the model, recalls, DCD's choice of candidates and its loss."""

from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation.losses import WeighedCandidates
from stages.distillation.models import ModelSource, load_config, load_preprocessor, new_classifier
from stages.distillation.outputs import ModelOutputs
from stages.methods import build_method
from stages.tasks.batches import Batch
from stages.tasks.caption_rows import CaptionedImages, DrawnCaptions, PairRows
from stages.tasks.kinds import ImageTexts
from stages.tasks.kinds.base import Said
from stages.tasks.packages import packaged_config
from stages.tasks.task import find_task, load_task
from stages.teaching.cost import TIMED_ROWS, _measured
from stages.training.options import Job, StageToCheck
from stages.training.stage import Stage

KIND = ImageTexts()


@pytest.fixture(scope="module")
def scenes():
    return load_task(find_task("digit-scenes"))


@pytest.fixture(scope="module")
def made(scenes):
    source = ModelSource(str(packaged_config("two_streams")))
    torch.manual_seed(0)
    model = new_classifier(load_config(source), KIND).eval()
    processor = load_preprocessor(source, KIND)
    split = scenes.splits["train"].part(range(40))
    pixels = np.stack([image.transpose(2, 0, 1) for image in split.images])
    return model, processor, CaptionedImages.of(split, pixels, processor)


def batch_of(rows, *indices: int) -> Batch:
    return rows.collate(np.array(indices), np.ones(len(indices), np.float32))


def test_a_caption_is_true_of_the_digits_that_it_names(scenes):
    pixels = {split: {i.tobytes() for i in scenes.splits[split].images} for split in ("train", "dev", "test")}
    assert not pixels["train"] & pixels["dev"] and not pixels["dev"] & pixels["test"]
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    assert len({text for texts in scenes.splits["train"].labels for text in texts}) > 300
    for texts in scenes.splits["train"].labels[:50]:
        assert len(texts) in (1, 2, 3, 4)
        for text in texts:  # what holds one way holds the other way round
            a, word, b = text.replace(" of ", " ").split(" ", 2)[0], None, None
            words = text.split(" ")
            first, word, b = " ".join(words[:2]), words[2], " ".join(words[-2:])
            of = " of" if opposite[word] in ("left", "right") else ""
            assert a in ("a", "an") and f"{b} {opposite[word]}{of} {first}" in texts
    test = scenes.splits["test"]
    groups = KIND.groups(test)
    assert len(groups) == 200 and len(set(groups)) == 1
    assert test.text_b[: groups[0]] == test.text_b[groups[0] : 2 * groups[0]]
    assert np.array(test.labels).reshape(len(groups), -1).sum(1).min() >= 1


def test_false_captions_depend_on_seed_epoch_and_row_and_are_false(made):
    rows, draw = made[2], DrawnCaptions(1)
    together = draw(batch_of(rows, 0, 1, 2, 3), 2).inputs["candidates"]
    assert torch.equal(draw(batch_of(rows, 3, 1), 2).inputs["candidates"], together[[3, 1]])
    for other in (draw(batch_of(rows, 0, 1, 2, 3), 3), DrawnCaptions(2)(batch_of(rows, 0, 1, 2, 3), 2)):
        assert (other.inputs["candidates"] != together).any(1).all()
    for epoch in range(20):
        found = draw(batch_of(rows, *range(40)), epoch).inputs["candidates"].numpy()
        for row, candidates in enumerate(found):
            true = rows.true_NG[row, candidates]
            assert true[0] and not true[1:].any() and len(set(candidates)) == 16


def test_too_few_captions_are_refused(made, scenes):
    split = scenes.splits["train"].part([0, 1])
    with pytest.raises(UserError, match=r"there are \d captions .* give more training rows"):
        CaptionedImages.of(split, made[2].pixels[:2], made[1])


def test_a_pair_has_one_logit_however_it_is_read(made, scenes):
    model, processor, rows = made
    batch = DrawnCaptions(1)(batch_of(rows, 0, 1, 2), 0)
    with torch.no_grad():
        logits = model(**batch.inputs).logits
        assert logits.shape == (3, 16)
        images = model.model.encoders.see(batch.inputs["pixel_values"])
        texts = model.model.encoders.read(**rows.read)
        states = {"image_states": images, "text_states": texts, "candidates": batch.inputs["candidates"]}
        again = model(**states, attention_mask=rows.read["attention_mask"]).logits
        torch.testing.assert_close(again, logits)
        captions = sorted({text for texts in scenes.splits["train"].part(range(40)).labels for text in texts})
        for row, place in ((0, 3), (2, 15)):  # alone, without the padding of longer captions
            alone = processor.read([captions[batch.inputs["candidates"][row, place]]])
            one = model(pixel_values=batch.inputs["pixel_values"][row : row + 1], **alone).logits
            torch.testing.assert_close(one[0, 0], logits[row, place], atol=1e-5, rtol=1e-4)


def test_rows_of_dev_are_the_pairs_of_the_split(made, scenes):
    dev = scenes.splits["dev"]
    pixels = np.stack(
        [*{n: i.transpose(2, 0, 1) for n, i in zip(dev.text_a, dev.images, strict=True)}.values()]
    )
    rows = PairRows.of(dev, pixels, made[1])
    batch, last = batch_of(rows, 0, len(dev) - 1), dev.images[-1].transpose(2, 0, 1)
    torch.testing.assert_close(batch.inputs["pixel_values"][1], torch.tensor(last / 127.5 - 1).float())
    assert torch.equal(batch.inputs["input_ids"][1], made[1].read(sorted(set(dev.text_b)))["input_ids"][-1])


def test_recalls_by_a_plain_loop_and_a_random_order_by_drawing():
    draw = np.random.default_rng(0)
    true = draw.random((12, 9)) < 0.2
    true[:, 0] |= ~true.any(1)
    scores, groups = np.round(draw.normal(size=true.shape) + true, 1), [9] * 12

    def recalls(scores: np.ndarray) -> dict[str, float]:
        found = {}
        for k in (1, 5, 10):
            text = [
                any((scores[i] >= scores[i, j])[~true[i]].sum() < k for j in np.flatnonzero(true[i]))
                for i in range(12)
            ]
            hit = [
                any((scores[:, j] >= scores[i, j])[~true[:, j]].sum() < k for i in np.flatnonzero(true[:, j]))
                for j in range(9)
            ]
            found[f"text_recall_at_{k}"] = np.mean(text)
            found[f"image_recall_at_{k}"] = np.mean(
                [np.mean([hit[j] for j in np.flatnonzero(true[i])]) for i in range(12)]
            )
        return found | {"mean_recall": np.mean(list(found.values()))}  # fmt: skip

    gold = true.astype(int).ravel()
    found = KIND.measure(KIND.reported, Said(scores.reshape(-1, 1), gold, groups))
    assert found == pytest.approx(recalls(scores))
    drawn = [recalls(draw.random(true.shape)) for _ in range(400)]
    for metric in KIND.reported:
        assert KIND.constant(metric, gold, groups) == pytest.approx(
            np.mean([d[metric] for d in drawn]), abs=0.03
        )


@pytest.mark.parametrize("keep", ["hardest", "random", "all"])
def test_teacher_and_student_are_compared_on_the_same_candidates(made, keep):
    rows = made[2]
    method = build_method({"hard_candidates": {"keep": keep}})
    method.images, method.known = (
        torch.randn(len(rows), 5, 32),
        {"text_states": torch.randn(len(rows.true_NG[0]), 7, 32)},
    )
    batch = DrawnCaptions(1)(batch_of(rows, 4, 7), 0)
    before, z = batch.inputs["candidates"], torch.randn(2, 16)
    kept, teacher = method.chosen(batch, ModelOutputs(logits_BC=z))
    wanted = {"all": 16, "random": 8, "hardest": 8}[keep]
    assert torch.equal(kept.inputs["image_states"], method.images[[4, 7]])
    for row in range(2):
        of_caption = dict(zip(before[row].tolist(), z[row].tolist(), strict=True))
        candidates = kept.inputs["candidates"][row].tolist()
        assert candidates[0] == before[row, 0] and len(set(candidates)) == wanted
        assert [of_caption[c] for c in candidates] == teacher.logits_BC[row].tolist()
        if keep == "hardest":
            assert sorted(of_caption[c] for c in candidates[1:]) == sorted(z[row, 1:].tolist())[-7:]
    assert torch.equal(method.chosen(batch, None)[0].inputs["candidates"], before)


def loss_by_loop(weights: str, zs: np.ndarray, zt: np.ndarray, alpha: float) -> float:
    p = np.exp(zt) / np.exp(zt).sum(1, keepdims=True)
    entropy = -(p * np.log(p)).sum(1)
    u, even = entropy / entropy.sum(), np.full(len(zs), 1 / len(zs))
    power = np.exp((1 - u) ** 2) if weights == "published" else np.exp(-entropy / 0.1)
    w = power / power.sum() if weights in ("published", "sharp") else even
    v = even if weights == "none" else u
    total = 0.0
    for i in range(len(zs)):
        y = np.eye(zs.shape[1])[0]
        own = np.mean(np.log1p(np.exp(zs[i])) - y * zs[i])
        total += alpha * w[i] * np.mean((zs[i] - zt[i]) ** 2) + (1 - alpha) * v[i] * own
    return total


@pytest.mark.parametrize("weights", ["published", "sharp", "own", "none"])
def test_the_loss_by_a_plain_loop_repeated_and_with_rows_that_only_fill(weights):
    draw = np.random.default_rng(0)
    zs, zt = draw.normal(size=(5, 8)), 2 * draw.normal(size=(5, 8))
    loss, labels = WeighedCandidates(alpha=0.3, weights=weights), torch.zeros(5, dtype=torch.long)
    student, teacher = (ModelOutputs(logits_BC=torch.tensor(z, dtype=torch.float32)) for z in (zs, zt))
    found = loss(student, teacher, labels=labels)
    assert found.item() == pytest.approx(loss_by_loop(weights, zs, zt, 0.3), rel=1e-5)
    twice = [ModelOutputs(logits_BC=of.logits_BC.repeat(2, 1)) for of in (student, teacher)]
    again = loss(*twice, labels=labels.repeat(2))
    # (1 - u)^2 depends on the size of the batch, a little
    assert again.item() == pytest.approx(found.item(), rel=0.05 if weights == "published" else 1e-5)
    batch = Batch({}, labels.repeat(2), torch.tensor([1.0] * 5 + [0.0] * 5), torch.arange(10))
    sums = sum(term.weight * term.sum / 5 for term in loss.terms(*twice, batch).values())
    assert sums.item() == pytest.approx(found.item(), rel=1e-5)


def test_a_step_is_estimated_on_candidates_whatever_the_batch_holds(made, scenes):
    model, _, rows = made
    stage = Stage("check", "check", Path(), {"stages": {}}, {}, "", Job(), torch.device("cpu"))
    plan = StageToCheck("student", "task", 32, 1, batch_size=10_000)
    assert len(rows) > TIMED_ROWS and _measured(stage, plan, rows, scenes, model.config) > 0
    assert rows.unit == "pair" and rows.lengths.sum() == 16 * len(rows)
