"""The batched masked LM against a plain one: one word at a time, batch 1, fp32, all logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, BertConfig

from data_aug import word_prediction
from data_aug.replaceable_words import content_words
from data_aug.word_prediction import MaskedLM, Query, split_masks


def reference(model, tokenizer, query: Query, k: int, grad: bool = False) -> list[str] | None:
    """What TinyBERT's augmentation does for one word, written out: mask it, run the model, read the mask."""
    byte_level = tokenizer.mask_token == "<mask>"
    spaced = byte_level and query.text[query.start - 1 : query.start].isspace()
    pieces = tokenizer.tokenize(" " * spaced + query.text[query.start : query.end])
    if len(pieces) != 1 or pieces[0] == tokenizer.unk_token:
        return None
    masked = query.text[: query.start] + tokenizer.mask_token + query.text[query.end :]
    inputs = tokenizer(masked, query.original, return_tensors="pt", return_token_type_ids=not byte_level)
    if "distilbert" in model.config.model_type:
        inputs.pop("token_type_ids")
    with torch.set_grad_enabled(grad):
        logits = model(**inputs).logits[0]
    place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    found = []
    for i in (
        logits[place].argsort(descending=True)[:k].tolist()
    ):  # a sort of the whole vocabulary, as published
        piece = tokenizer.convert_ids_to_tokens(i) if i < len(tokenizer) else ""
        text = tokenizer.decode([i]).strip()
        if piece and not piece.startswith("##") and i not in tokenizer.all_special_ids and text.isalpha():
            if not byte_level or piece.startswith("Ġ") == spaced:
                found.append(text)
    return found


def queries_of(texts: list[str]) -> list[Query]:
    return [Query(text, *span, text) for text in texts for span in content_words(text)]


def test_same_candidates_as_one_word_at_a_time(lm, texts) -> None:
    model, tokenizer = lm
    if model.config.model_type == "roberta":  # <mask> in a text swallows all the space before it
        texts = [" ".join(text.split()) for text in texts]
    queries = queries_of(texts)
    queries.append(Query("a dull film", 2, 6, "a great film"))  # a re-predicted variant beside its original
    queries.append(Query("a zyxwvuts film", 2, 10, "a zyxwvuts film"))
    expected = [reference(model, tokenizer, query, 30) for query in queries]
    for batch_tokens in (1, 64, 4096):
        assert MaskedLM(model, tokenizer, batch_tokens=batch_tokens).candidates(queries, 30) == expected
    assert sum(map(bool, expected)) > 5
    assert None in expected


def test_logits_at_the_masks_are_the_full_models(lm, texts) -> None:
    model, tokenizer = lm
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    rows, places = torch.tensor([0, 1, 1, 3]), torch.tensor([2, 1, 4, 3])
    with torch.no_grad():
        expected = model(**inputs).logits[rows, places]
        torch.testing.assert_close(MaskedLM(model, tokenizer).logits(inputs, rows, places), expected)
        again = model(**inputs).logits[rows, places]  # and the model is left as it was
    torch.testing.assert_close(again, expected)


def test_bf16_runs_the_head_in_fp32(bert, texts) -> None:
    inputs = bert[1](texts, padding=True, return_tensors="pt")
    rows, places = torch.arange(4), torch.ones(4, dtype=torch.long)
    lm = MaskedLM(*bert, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = lm.logits(inputs, rows, places)
    assert next(bert[0].parameters()).dtype == torch.float32  # the caller's model is left as it was
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, MaskedLM(*bert).logits(inputs, rows, places), atol=0.2, rtol=0.1)
    assert len(lm.candidates(queries_of(texts))) == len(queries_of(texts))


def test_equal_inputs_run_once(bert, texts, monkeypatch) -> None:
    lm, seen = MaskedLM(*bert), []
    logits = lm.logits
    monkeypatch.setattr(lm, "logits", lambda *args: seen.append(len(args[1])) or logits(*args))
    once = lm.candidates(queries_of(["great film"]))
    assert sum(seen) == 2
    twice = lm.candidates(
        queries_of(["great film", "Great FILM", "great film"])
    )  # this tokenizer lower-cases
    assert twice == once * 3
    assert sum(seen) == 4


def test_batches_keep_their_limit_and_hold_little_padding(bert, monkeypatch) -> None:
    monkeypatch.setitem(word_prediction.ENOUGH_TOKENS, "cpu", 30)
    lm, seen = MaskedLM(*bert, batch_tokens=100), []
    logits = lm.logits
    monkeypatch.setattr(lm, "logits", lambda *args: seen.append(args[0]["attention_mask"]) or logits(*args))
    lm.candidates(queries_of([f"film {'great ' * n}" for n in range(8)]))
    assert sum(len(mask) for mask in seen) == sum(range(1, 9))
    lengths = [mask.sum(1).tolist() for mask in seen]
    assert sum(lengths, []) == sorted(sum(lengths, []), reverse=True)
    for mask in seen:
        assert mask.numel() <= 100
        assert mask[:-1].sum() < 30 or mask.sum() >= (1 - word_prediction.MAX_PADDING) * mask.numel()


def test_tokens_inside_words_and_unknown_words_are_not_single(bert) -> None:
    # "°C" is one run for the tokenizer: its "c" is the piece "##c", which begins no word.
    text = "great °C zebra unforgettable"
    great, c, zebra, several = MaskedLM(*bert).candidates(queries_of([text]))
    assert great is not None
    assert (c, zebra, several) == (None, None, None)


def test_several_masks_a_pass_read_each_its_own_mask(bert, texts) -> None:
    model, tokenizer = bert
    lm = MaskedLM(model, tokenizer, masks_per_pass=9, min_distance=2)
    text = "great film love music"
    found = lm.candidates(queries_of([text]), 40)
    for words, masked in (((0, 2), "[MASK] film [MASK] music"), ((1, 3), "great [MASK] love [MASK]")):
        inputs = tokenizer(masked, text, return_tensors="pt", return_token_type_ids=True)
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        for word in words:
            best = tokenizer.convert_ids_to_tokens(
                logits[1 + word, : len(tokenizer)].argsort(descending=True)
            )
            assert found[word][:5] == [piece for piece in best if piece.isalpha()][:5]


@given(st.sets(st.integers(0, 80)), st.integers(1, 5), st.integers(1, 9))
def test_split_masks(places: set[int], most: int, distance: int) -> None:
    passes = split_masks(sorted(places), most, distance)
    assert sorted(place for masks in passes for place in masks) == sorted(places)
    for masks in passes:
        assert 1 <= len(masks) <= most
        assert all(right - left >= distance for left, right in zip(masks, masks[1:], strict=False))
    if most == 1:
        assert len(passes) == len(places)


def test_length_limit_and_lengths(lm) -> None:
    model, tokenizer = lm
    reader = MaskedLM(model, tokenizer)
    assert reader.limit == 64  # RoBERTa's 66 positions serve 64 tokens
    text = "film " * 40
    assert reader.pair_lengths([text, "film"]) == [len(tokenizer(t, t)["input_ids"]) for t in (text, "film")]
    assert reader.candidates([Query(text, 0, 4, text)]) == [None]
    assert reader.pair_lengths([]) == reader.candidates([]) == []


def test_refusals(bert) -> None:
    model, tokenizer = bert
    headless = AutoModel.from_config(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(ValueError, match="BertModel has no masked-LM head; .* fit a head"):
        MaskedLM(headless, tokenizer)
    with pytest.raises(ValueError, match="masks_per_pass: 0 is below 1"):
        MaskedLM(model, tokenizer, masks_per_pass=0)


def test_a_batch_is_bounded_by_its_masked_words_too():
    rows = [word_prediction._Row(word_prediction._Pair([1] * 5, [0] * 5), (1, 2)) for _ in range(5)]
    lengths = [len(batch) for batch in word_prediction._batches(rows, 10**6, 10**6, 4)]
    assert lengths == [2, 2, 1]
    assert [len(batch) for batch in word_prediction._batches(rows, 10**6, 10**6, 1)] == [1] * 5
