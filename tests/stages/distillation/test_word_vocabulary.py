"""Students that read whole words: their tokenizer, and embeddings made of those of tokens."""

import torch

from stages.distillation.models import ModelSource, load_encoder, load_tokenizer
from stages.distillation.sentence_vectors import check_reads_apart
from stages.distillation.word_vocabulary import read_words, word_tokenizer
from tests.conftest import make_encoder

TEXTS = ["a good film .", "a good story", "the film, the goodfilm", "a plot"]


def test_the_most_frequent_words_are_known_and_pairs_are_parted(tmp_path):
    tokenizer = word_tokenizer(TEXTS, 4)
    assert [*tokenizer.get_vocab()].count("a") == 1 and len(tokenizer) == 4 + 4
    assert tokenizer.convert_ids_to_tokens(tokenizer("A good", "plot, film")["input_ids"]) == [
        "[CLS]", "a", "good", "[SEP]", "[UNK]", "[UNK]", "film", "[SEP]",
    ]  # fmt: skip
    check_reads_apart(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(ModelSource(str(tmp_path)))
    assert dict(again("the film", "a plot")) == dict(tokenizer("the film", "a plot"))


def test_an_encoder_reads_words_as_it_read_their_tokens(tmp_path):
    source = ModelSource(str(make_encoder(tmp_path)))
    encoder, former = load_encoder(source).eval(), load_tokenizer(source)
    words = word_tokenizer(TEXTS, 100)
    table = encoder.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        before = encoder(**former(["a good film", "the story ."], padding=True, return_tensors="pt"))[0]
        read_words(encoder, former, words)
        after = encoder(**words(["a good film", "the story ."], padding=True, return_tensors="pt"))[0]
    assert encoder.config.vocab_size == len(words) != len(former)
    torch.testing.assert_close(after, before)
    pieces = former("goodfilm", add_special_tokens=False)["input_ids"]
    (word,) = words("goodfilm", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(encoder.get_input_embeddings().weight[word], table[pieces].mean(0))
