"""TinyBERT's data augmentation: words replaced by what a masked language model or word vectors propose.

Takes texts and a model and knows no job. `masked_lm` and `word_vectors` propose words, `augment` makes the
variants.
"""
