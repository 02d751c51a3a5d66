"""A vocabulary of whole words: other tokens than the teacher's, for students that are not compared token by token."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stages.distillation.trimmed_vocabulary import set_table

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def word_tokenizer(texts: Iterable[str], most: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the most frequent words of some texts, in lower case; it frames texts and pairs as BERT's does.

    Args:
        most: maximum number of words.

    Example:
        >>> tokenizer = word_tokenizer(["a good film", "a good cast"], most=3)
        >>> tokenizer.tokenize("A good end")
        ['a', 'good', '[UNK]']
    """
    normalizer, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word for text in texts for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text))
    )
    words = sorted(counts, key=lambda word: (-counts[word], word))[:most]
    ids = {token: i for i, token in enumerate([*SPECIAL.values(), *words])}
    backend = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL["unk_token"]))
    backend.normalizer, backend.pre_tokenizer = normalizer, split
    end, begin = ((SPECIAL[name], ids[SPECIAL[name]]) for name in ("sep_token", "cls_token"))
    backend.post_processor = processors.BertProcessing(end, begin)
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **SPECIAL)


def read_words(
    encoder: PreTrainedModel, former: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Let an encoder read words. The embedding of each begins as the mean of those of its tokens.

    Args:
        former: the encoder's own tokenizer.
        tokenizer: that of the words; its special tokens keep their embeddings.
    """
    table: Any = encoder.get_input_embeddings()
    tokens = {getattr(tokenizer, name): [getattr(former, f"{name}_id")] for name in SPECIAL}
    words = [word for word in tokenizer.get_vocab() if word not in tokens]
    tokens |= dict(zip(words, former(words, add_special_tokens=False)["input_ids"], strict=True))
    rows = [
        table.weight.detach()[tokens[word] or [former.unk_token_id]].mean(0)
        for word in tokenizer.convert_ids_to_tokens([*range(len(tokenizer))])
    ]
    set_table(encoder, tokenizer, torch.stack(rows))
