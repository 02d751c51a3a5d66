"""Strips of symbols as rows, and how the strings that a model reads are decoded and scored."""

from itertools import product

import numpy as np
import pytest
import torch
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from checkpoints.errors import UserError
from stages.distillation.losses import GoldLabels
from stages.distillation.losses.prediction import ctc_losses
from stages.distillation.outputs import ModelOutputs
from stages.tasks.kinds.base import Said
from stages.tasks.kinds.sequences import BLANK, Sequences
from stages.tasks.readers.strips import DIGITS, SIDE, composed
from stages.tasks.strip_rows import StripRows
from stages.tasks.task import find_task, load_task

PROCESSOR = ViTImageProcessorPil(size={"height": 2, "width": 8})
KIND = Sequences((BLANK, "a", "b"))


def rows_of(*strings: str) -> StripRows:
    pixels = np.arange(len(strings) * 48, dtype=np.uint8).reshape(-1, 3, 2, 8)
    return StripRows.of(pixels, strings, KIND.labels, PROCESSOR)


def logits_of(*paths: str) -> np.ndarray:
    """Logits whose most probable path is this one, `-` for the blank."""
    return np.stack([np.eye(3)[["-ab".index(symbol) for symbol in path]] for path in paths])


def test_no_digit_is_in_strings_of_two_splits_and_each_stands_in_its_place(monkeypatch):
    noisy = composed("dev")[0][0]
    assert (noisy == composed("dev")[0][0]).all()
    monkeypatch.setattr("stages.tasks.readers.strips.NOISE", 0.0)
    assert (noisy != composed("dev")[0][0]).any()
    digits = {}
    for role in ("train", "dev", "test"):
        images, strings, spans = composed(role)
        digits[role] = set()
        for image, text, of_row in zip(images, strings, spans, strict=True):
            assert DIGITS[0] <= len(text) == len(of_row) <= DIGITS[1]
            assert all(end <= begin for (_, end), (begin, _) in zip(of_row, of_row[1:], strict=False))
            inside = np.zeros(image.shape[1], bool)
            for begin, end in of_row:
                assert end - begin == SIDE
                inside[begin:end] = True
                digits[role].add(image[:, begin:end].tobytes())
            assert not image[:, ~inside].any() and image[:, inside].any()
    assert not digits["train"] & digits["dev"] and not (digits["train"] | digits["dev"]) & digits["test"]
    task = load_task(find_task("digit-strings"))
    assert task.splits["dev"].labels == composed("dev")[1] and task.selection == "character_accuracy"


def test_a_batch_has_the_strings_and_a_label_for_each_frame():
    rows = rows_of("ab", "", "b")
    batch = rows.collate(np.array([2, 1, 0]), np.ones(3, np.float32))
    assert batch.inputs["pixel_values"].shape == (3, 3, 2, 8)
    assert batch.symbols.tolist() == [[2, -1], [-1, -1], [1, 2]]
    assert batch.labels.tolist() == [[0] * 4, [-1] * 4, [0] * 4]
    counts = rows.normalizers(np.array([0, 1, 2]))
    assert (counts["rows"], counts["targets"], counts["labels"]) == (3, 12, 8)
    assert all(batch.count(name) == counts[name] for name in ("rows", "targets", "labels"))
    flat = np.arange(3 * 4 * 3).reshape(12, 3)
    assert (rows.of_texts(flat)[1] == flat[4:8]).all() and rows.first_targets.tolist() == [0, 4, 8]
    others = rows.with_others_images
    assert (others.pixels[1] == rows.pixels[0]).all() and (others.symbols == rows.symbols).all()


@pytest.mark.parametrize("text, needed", [("ababa", 5), ("aab", None), ("aaa", 5)])
def test_a_string_that_its_strip_has_no_frames_for_is_refused(text, needed):
    if needed is None:
        assert len(rows_of(text)) == 1
    else:
        with pytest.raises(
            UserError, match=f"^'{text}' needs {needed} frames, and a strip of 8 pixels has 4; let"
        ):
            rows_of(text)


def test_strings_are_decoded_and_every_symbol_has_its_surest_frame():
    logits = logits_of("a-ab", "aabb", "----", "bb-a")
    assert KIND.answers(logits).tolist() == ["aab", "ab", "", "ba"]
    logits[1, 1, 1] = 2.0
    assert KIND.emitted(logits[1]) == [("a", 1), ("b", 2)]
    text, probability = KIND.predicted(KIND.probabilities(logits[0]))
    assert text == "aab" and probability == pytest.approx((np.e / (np.e + 2)) ** 4)


def test_metrics_count_edits_and_whole_strings_and_resamples_agree():
    logits, gold = logits_of("a-ab", "aabb", "----"), np.array(["aab", "aa", "ab"])
    found = KIND.measure(KIND.reported, Said(logits, gold))
    assert found == pytest.approx({"character_accuracy": 1 - 3 / 7, "sequence_accuracy": 1 / 3})
    drawn = KIND.resampler(KIND.reported, Said(logits, gold))(np.array([[0, 1, 2], [0, 0, 0]]))
    assert {name: values[0] for name, values in drawn.items()} == pytest.approx(found)
    assert [values[1] for values in drawn.values()] == [1.0, 1.0]
    assert KIND.agreement(logits, logits_of("a-ab", "abbb", "---a"))["label_loyalty"] == pytest.approx(2 / 3)


def test_the_constant_is_the_best_of_the_frequent_symbols_strings():
    gold = np.array(["aab", "aab", "b"])
    assert KIND.constant("sequence_accuracy", gold) == pytest.approx(2 / 3)
    assert KIND.constant("character_accuracy", gold) == pytest.approx(1 - 2 / 7)
    assert KIND.constant("character_accuracy", np.array(["a", "b", "ab"])) >= 0


def test_the_ctc_loss_is_that_of_all_paths():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 3)
    symbols = torch.tensor([[1, 1], [2, -1], [-1, -1]])
    found = ctc_losses(logits, symbols)
    for row, text in enumerate(("aa", "b")):
        p = logits[row].softmax(-1)
        paths = [
            path for path in product("-ab", repeat=4) if KIND.answers(logits_of("".join(path)))[0] == text
        ]
        total = sum(torch.stack([p[t, "-ab".index(s)] for t, s in enumerate(path)]).prod() for path in paths)
        assert found[row].item() == pytest.approx(-total.log().item(), abs=1e-5)
    assert found[2] == 0
    labels = torch.tensor([[0] * 4, [0] * 4, [-1] * 4])
    alone = GoldLabels()(ModelOutputs(logits), labels=labels, symbols=symbols)
    assert alone.item() == pytest.approx(found.sum().item() / 8)
