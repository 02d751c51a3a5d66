"""Students that read images, as they begin."""

import torch
from transformers import ViTConfig

from stages.distillation.models import new_classifier
from stages.distillation.students.vision import vision_config
from stages.tasks.kinds.classes import ImageClasses


def test_the_two_tokens_of_a_new_deit_differ():
    teacher = ViTConfig(image_size=8, num_channels=1)
    sizes = {"layers": 1, "width": 32, "feed_forward": 32, "heads": 4}
    torch.manual_seed(1)
    deit = new_classifier(
        vision_config("deit", sizes, {"patch": 2}, teacher, 0.0), ImageClasses(labels=("0", "1"))
    )
    embeddings = deit.base_model.embeddings
    drawn = [
        embeddings.cls_token[0],
        embeddings.distillation_token[0],
        *embeddings.position_embeddings[0].split(1),
    ]
    alike = torch.corrcoef(torch.cat(drawn)).triu(1)
    assert alike.abs().max() < 0.8 and all(0.01 < vector.std() < 0.03 for vector in drawn)
