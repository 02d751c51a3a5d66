"""TinyBERT's data augmentation: words replaced by what a masked language model or word vectors propose.

Takes texts and a model and knows no job. `masked_lm` and `word_vectors` propose words, `augment` makes the
variants.
"""


class InputError(ValueError):
    """A text, a model, word vectors or a setting that cannot be used; the message says what to mend."""
