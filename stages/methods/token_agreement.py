"""DeiT (Touvron et al., arXiv 2012.12877): what the class head and the distillation head agree with.

The token is the student's (kind `deit`, of text `bert_with_token`) and its loss is `distillation_token`. Here is what
shows that it works.
"""

from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from stages.distillation.distillation import Distillation
from stages.distillation.losses.distillation_token import WITH_TOKEN
from stages.distillation.outputs import CaptureSpec, read
from stages.distillation.settings import check_type
from stages.methods.base import Method
from stages.tasks.batches import batches_by_length
from stages.tasks.task import Task
from stages.tasks.task_rows import TaskRows
from stages.teaching.live_teacher import task_teacher
from stages.training.stage import Stage

HEADS = ("cls_logits", "distillation_logits")


class TokenAgreement(Method):
    """Measures on dev each head's agreement with teacher and gold, and the tokens' cosine at the first and last layer.

    The paper's section 5.2: the distillation head agrees with a convnet teacher more than the class head does, and the
    tokens grow alike from layer to layer (cosine 0.06 at the first, 0.93 at the last), but never equal.
    """

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse students without the token."""
        check_type(student, WITH_TOKEN, "has no distillation token", argument="kind")

    def examine(self, stage: Stage, task: Task, model: Distillation, dev: TaskRows) -> None:
        """Fill `found`: agreement of each head with the teacher and with gold, and the cosine of the tokens."""
        student: Any = model.student
        layers = student.config.num_hidden_layers
        spec = CaptureSpec(hidden=frozenset({1, layers}), named=frozenset(HEADS))
        teacher = task_teacher(stage, task, CaptureSpec(logits=True))
        said: dict[str, list[Any]] = {name: [] for name in (*HEADS, "teacher", "gold", "first", "last")}
        model.eval()
        with torch.no_grad():
            for batch in batches_by_length(dev):
                batch = batch.to(stage.device)
                outputs = read(student, batch, spec)
                for name in HEADS:
                    said[name].append(outputs.named[name].argmax(-1))
                said["teacher"].append(teacher(batch).logits.argmax(-1))
                said["gold"].append(batch.labels)
                for name, layer in (("first", 1), ("last", layers)):
                    class_BW, token_BW = outputs.hidden_BLW[layer][:, 0], outputs.hidden_BLW[layer][:, 1]
                    said[name].append(torch.cosine_similarity(class_BW, token_BW, dim=-1))
        all_of = {name: torch.cat(parts).cpu().numpy() for name, parts in said.items()}
        for title, head in (("class head", "cls_logits"), ("distillation head", "distillation_logits")):
            for whom in ("teacher", "gold"):
                self.found[f"{title} = {whom}"] = float(np.mean(all_of[head] == all_of[whom]))
        for name in ("first", "last"):
            self.found[f"cosine of the tokens, {name} layer"] = float(all_of[name].mean())
