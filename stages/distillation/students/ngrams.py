"""A deep averaging network over word n-grams: the mean of their embeddings, and one hidden layer (arXiv 2110.08536).

A row is read as words; which n-grams of them the student knows is part of the model. So it needs no more than the ids
of words, as any model, and goes into one ONNX file.

Axes in names: B rows, L words, O the longest n-gram, N n-grams of a row, K n-grams that are known, W width.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from stages.distillation.students.registry import register

SLOTS_PER_NGRAM = 8
"""Of two n-grams that fall into one slot the rarer one is not known: about 1 in 16."""
_FACTOR, _PRIME = 1_000_003, 2**31 - 1


class NGramsConfig(PretrainedConfig):
    """Sizes: `width` of the embeddings and of the hidden layer.

    Attributes:
        vocab_size: words of its tokenizer.
        ngrams: that it knows.
        longest: words of the longest.
        drop: fraction of a row's n-grams that are left out in training.
        reads_own_words: whether it needs a tokenizer of its own, which a method makes.
    """

    model_type = "ngrams"
    sizes = {"width": "hidden_size"}
    reads_own_words = True

    vocab_size: int = 30522
    hidden_size: int = 64
    ngrams: int = 1
    longest: int = 4
    drop: float = 0.1
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.1
    pad_token_id: int | None = 0

    def check(self) -> None:
        """Nothing is refused."""

    def forward_flops(self, tokens: float) -> float:
        """The sum of the embeddings of at most one n-gram of each length at each word, and the hidden layer."""
        return self.longest * self.hidden_size * tokens + 2 * self.hidden_size**2


class NGramsForSequenceClassification(PreTrainedModel):
    """Mean of n-gram embeddings, linear, tanh, linear; dropout before both.

    The gradient of the table is sparse: a step touches the rows of the batch's n-grams only.
    """

    config_class = NGramsConfig
    _supports_sdpa = True  # it has no attention; all models are made with the capturing attention function
    slots: Tensor  # hash -> number of the n-gram that may have it
    words_KO: Tensor  # number of an n-gram -> its words

    def __init__(self, config: Any):
        super().__init__(config)
        width, known = config.hidden_size, config.ngrams + 1
        slots = 1 << (SLOTS_PER_NGRAM * config.ngrams - 1).bit_length()
        self.register_buffer("slots", torch.zeros(slots, dtype=torch.int32))
        self.register_buffer("words_KO", torch.zeros(known, config.longest, dtype=torch.int32))
        self.embeddings = nn.Embedding(known, width, padding_idx=0, sparse=True)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.hidden = nn.Linear(width, width)
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def learn(self, words_KO: np.ndarray) -> int:
        """Set the n-grams that it knows.

        Args:
            words_KO: word ids, the most frequent n-gram first, filled up with 0 on the right.

        Returns:
            How many of them it knows: one that falls into the slot of a more frequent one is left out.
        """
        words = torch.from_numpy(words_KO.astype(np.int64))
        hashes, places = words[:, 0], torch.arange(1, len(words) + 1)
        for column in words.T[1:]:
            hashes = torch.where(column > 0, (hashes * _FACTOR + column) % _PRIME, hashes)
        self.words_KO.zero_()
        self.words_KO[1 : len(words) + 1] = words.int()
        slots = np.zeros(len(self.slots), np.int32)
        # The most frequent is written last.
        slots[(hashes % len(self.slots)).numpy()[::-1]] = places.numpy()[::-1]
        self.slots.copy_(torch.from_numpy(slots))
        return int((self.slots > 0).sum())

    def known(self, ids_BL: Tensor) -> Tensor:
        """(B, N) for each length and word the n-gram that begins there, as a row of the embeddings; 0 if it is not known."""
        longest = self.config.longest
        windows_BLO = torch.stack([functional.pad(ids_BL, (0, k))[:, k:] for k in range(longest)], -1)
        found, hashes_BL = [], windows_BLO[..., 0]
        for last in range(longest):
            if last:
                hashes_BL = (hashes_BL * _FACTOR + windows_BLO[..., last]) % _PRIME
            here_BL = self.slots[hashes_BL % len(self.slots)].long()
            inside_O = torch.arange(longest, device=ids_BL.device) <= last
            differ_BL = (self.words_KO[here_BL] - windows_BLO * inside_O).abs().sum(-1)
            found.append(here_BL * (differ_BL == 0) * (windows_BLO[..., last] > 0))
        return torch.cat(found, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        ngrams_BN = self.known(input_ids * attention_mask)
        if self.training and self.config.drop:
            ngrams_BN = ngrams_BN * (torch.rand(ngrams_BN.shape, device=ngrams_BN.device) >= self.config.drop)
        counts_B1 = (ngrams_BN > 0).sum(1, keepdim=True).clamp(min=1)
        mean_BW = self.embeddings(ngrams_BN).sum(1) / counts_B1
        hidden_BW = torch.tanh(self.hidden(self.dropout(mean_BW)))
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(hidden_BW)))


register(NGramsForSequenceClassification)
