"""BERT with a distillation token: DeiT's second token (Touvron et al., arXiv 2012.12877) in a reader of text.

Axes in names: B rows, L tokens of a row, W width, C classes.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertPreTrainedModel
from transformers.models.deit.modeling_deit import DeiTForImageClassificationWithTeacherOutput

from stages.distillation.students.registry import register


class BertWithTokenConfig(BertConfig):
    """The config of a BERT of any of its sizes, with the teacher's vocabulary and up to 512 tokens."""

    model_type = "bert_with_token"
    sizes: ClassVar[dict[str, str]] = {
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "feed_forward": "intermediate_size",
        "heads": "num_attention_heads",
    }

    def check(self) -> None:
        """Give attention the dropout of the hidden states."""
        self.attention_probs_dropout_prob = self.hidden_dropout_prob


class BertWithToken(BertModel):
    """The encoder. Each row gets the token behind [CLS], with a position embedding of its own; all others keep theirs."""

    config_class = BertWithTokenConfig

    def __init__(self, config: Any):
        super().__init__(config, add_pooling_layer=False)
        self.distillation_token = nn.Embedding(1, config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **shows: Any,
    ) -> Any:
        """Read rows (B, L), with [CLS] first; the hidden states are (B, L + 1, W)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        places = torch.arange(input_ids.shape[1] + 1, device=input_ids.device)
        words_BLW = self.embeddings.word_embeddings(input_ids)
        token_B1W = self.distillation_token.weight.expand(input_ids.shape[0], 1, -1)
        return super().forward(
            inputs_embeds=torch.cat([words_BLW[:, :1], token_B1W, words_BLW[:, 1:]], 1),
            attention_mask=torch.cat([mask[:, :1], mask], 1),
            token_type_ids=torch.cat([types[:, :1], types], 1),
            position_ids=(places - 1).clamp(min=0)[None],
            **shows,
        )


class BertWithTokenForSequenceClassification(BertPreTrainedModel):
    """A linear head on the last state of each of the two tokens; it answers with the mean of their logits (section 3)."""

    config_class = BertWithTokenConfig

    def __init__(self, config: Any):
        super().__init__(config)
        self.bert = BertWithToken(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.distillation_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> DeiTForImageClassificationWithTeacherOutput:
        """`logits` (B, C), and those of the heads: `cls_logits` and `distillation_logits`."""
        shows = {"output_hidden_states": True} if output_hidden_states else {}
        output = self.bert(input_ids, attention_mask, token_type_ids, **shows)
        states_BLW = self.dropout(output.last_hidden_state)
        of_class, of_token = self.classifier(states_BLW[:, 0]), self.distillation_classifier(states_BLW[:, 1])
        return DeiTForImageClassificationWithTeacherOutput(
            (of_class + of_token) / 2, of_class, of_token, output.hidden_states
        )


register(BertWithToken, BertWithTokenForSequenceClassification)
