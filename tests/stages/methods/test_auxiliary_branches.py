"""A student with branches and a discriminator: what it computes, who is trained by what, and what is left in the end."""

import copy

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from checkpoints.errors import UserError
from stages.distillation.distillation import Distillation
from stages.distillation.losses import Adversary, Peers, build
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.students import branches
from stages.distillation.students.branches import WithBranches, last_hidden
from stages.methods import build_method
from stages.tasks.batches import Batch
from stages.training.job import Job
from stages.training.options import Training
from stages.training.step import StepKind
from tests.conftest import tiny_config
from tests.stages.foreign import assert_resumes, make_stage
from tests.stages.methods.test_methods import task

LINES = [{"each_head": {"losses": ["gold_labels", "soft_labels"]}}, "peers", "adversary"]
IMAGES = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = (IMAGES.mean((1, 2, 3)) > 0).long()


def resnet(width: int = 4, seed: int = 0) -> ResNetForImageClassification:
    torch.manual_seed(seed)
    sizes = {"embedding_size": width, "hidden_sizes": [width, 2 * width], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", num_labels=2)).eval()


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = tiny_config()
    config.initializer_range = 0.5
    return BertForSequenceClassification(config).eval()


INPUTS = {
    resnet: {"pixel_values": IMAGES[:3]},
    bert: {
        "input_ids": torch.randint(5, 20, (3, 7), generator=torch.Generator().manual_seed(1)),
        "attention_mask": (torch.arange(7) < torch.tensor([[7], [2], [5]])).long(),
    },
}


class Images:
    """Rows of IMAGES."""

    lengths = np.ones(len(IMAGES), np.int64)

    def __len__(self) -> int:
        return len(IMAGES)

    def normalizers(self, indices) -> dict[str, int]:
        return dict.fromkeys(("rows", "targets", "labels"), len(indices))

    def collate(self, indices, weights) -> Batch:
        rows = torch.as_tensor(indices)
        return Batch(
            {"pixel_values": IMAGES[rows]}, LABELS[rows], torch.as_tensor(weights), rows, padded=False
        )


def teacher(batch: Batch) -> ModelOutputs:
    """What a larger convnet shows, for each of two branches and the fusion."""
    model = resnet(8, seed=5)
    with torch.no_grad():
        shown = model(**batch.inputs, output_hidden_states=True)
    heads = {"head_logits": shown.logits[:, None].expand(-1, 3, -1)}
    return ModelOutputs(hidden_BLW={2: shown.hidden_states[2]}, named=heads)


def learning(lines=LINES, number: int = 1) -> Distillation:
    """A student that is about to learn."""
    student, width_8 = WithBranches(resnet(), number), resnet(8).config
    return Distillation(student, [build(line, student.config, width_8) for line in lines])


@pytest.mark.parametrize("make", [resnet, bert], ids=lambda make: make.__name__)
@pytest.mark.parametrize("attention", [True, False])
def test_a_branch_with_the_weights_of_the_main_one_answers_as_it_does(make, attention):
    stock, inputs = make(), INPUTS[make]
    wanted = stock(**inputs).logits
    student = WithBranches(copy.deepcopy(stock), 2, attention).eval()
    before = student(**inputs)
    assert torch.equal(before.logits, wanted) and torch.equal(before.head_logits[:, 0], wanted)
    assert not torch.allclose(before.head_logits[:, 1], before.head_logits[:, 2])
    student.branches[1].load_state_dict(branches.Branch(student.main).state_dict())
    after = student(**inputs)
    torch.testing.assert_close(after.head_logits[:, 2], wanted)
    assert torch.equal(after.head_logits[:, 1], before.head_logits[:, 1])
    # The fusion, by a loop.
    for row in range(3):
        parts = after.features[row, :3]
        scores = torch.zeros(3)
        if attention:
            query = student.fusion.query(parts[0])
            scores = torch.stack([query @ student.fusion.key(part) for part in parts]) / len(query) ** 0.5
        fused = sum(weight * part for weight, part in zip(scores.softmax(0), parts, strict=True))
        torch.testing.assert_close(after.features[row, 3], fused)
        torch.testing.assert_close(after.head_logits[row, 3], student.fusion.classifier(fused))
    assert torch.equal(stock(**inputs).logits, student.main(**inputs).logits)


def test_peers_learn_from_each_other_in_pairs_with_the_first():
    heads_BKC = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = Peers(temperature=2.0, weight=4.0)(ModelOutputs(named={"head_logits": heads_BKC}))
    wanted = torch.zeros(())
    for row in heads_BKC:
        for k in (1, 2):
            for a, b in ((0, k), (k, 0)):
                target = (row[b].detach() / 2).softmax(-1)
                wanted = wanted - 4 * (target * (row[a] / 2).log_softmax(-1)).sum() / 2 / 3
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x, heads_BKC)[0] for x in (loss, wanted)))


@pytest.mark.parametrize("between", ["teacher", "branches"])
def test_the_discriminator_and_the_student_have_opposite_aims_by_a_loop(between):
    torch.manual_seed(0)
    loss = Adversary(resnet().config, resnet(8).config, between, weight=0.5)
    batch = Images().collate(np.arange(4), np.array([1, 1, 1, 0], np.float32))
    features_BKW = torch.randn(4, 4, 8).requires_grad_()
    terms = loss.terms(ModelOutputs(named={"features": features_BKW}), teacher(batch), batch)

    def judge(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(loss.discriminator(x))[0]

    judged = fooled = 0.0
    for row, shown in zip(features_BKW[:3], teacher(batch).hidden_BLW[2], strict=False):
        if between == "teacher":
            real, made = shown.mean((1, 2)), [loss.projection(row[3])]
        else:
            real, made = row[0], [row[1], row[2]]
            fooled = fooled - torch.log(1 - judge(real))
        judged = judged - torch.log(judge(real)) - sum(torch.log(1 - judge(x)) for x in made) / len(made)
        fooled = fooled - sum(torch.log(judge(x)) for x in made) / len(made)
    torch.testing.assert_close(terms["discriminator"].sum, judged)
    torch.testing.assert_close(terms["adversary"].sum, fooled)
    assert (terms["discriminator"].weight, terms["adversary"].weight) == (1.0, 0.5)
    # The discriminator's term moves it alone; the student's goes to the features.
    moved = torch.autograd.grad(
        terms["discriminator"].sum, features_BKW, retain_graph=True, allow_unused=True
    )
    assert moved == (None,)
    (gradient,) = torch.autograd.grad(terms["adversary"].sum, features_BKW)
    assert gradient[:3].abs().sum() > 0 and gradient[3].abs().sum() == 0


def test_each_player_has_its_own_gradients_and_optimiser_and_a_stopped_job_resumes(tmp_path, world):
    method = build_method({"auxiliary_branches": {"branches": 1, "discriminator_rate": 0.02}})
    options = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01}

    def make(directory):
        model, stage = learning(), make_stage(directory, options | {"clip": 0.0})
        step = method.step(model, stage.training)
        assert step.kind(model) == method.step_kind(model.losses)
        return Job(stage, model, Images(), teacher, step=step)

    job = assert_resumes(tmp_path, make)
    groups = job.engine.deepspeed.optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == [0.01, 0.01, 0.02]

    model = learning()  # the first step by hand: both gradients at the same weights
    theirs = list(model.losses[2].discriminator.parameters())
    mine = [p for p in model.parameters() if all(p is not q for q in theirs)]
    batch = Images().collate(np.arange(16), np.ones(16, np.float32))
    terms = model.train()(batch, teacher(batch))
    sums = {"discriminator": 0.0, "loss": 0.0}
    for term in terms.values():
        sums[term.tag] = sums[term.tag] + term.weight * term.sum / 16
    wanted = torch.autograd.grad(sums["discriminator"], theirs, retain_graph=True)
    wanted += torch.autograd.grad(sums["loss"], mine)
    fresh = make(tmp_path / "one")
    fresh.engine.deepspeed.train()
    fresh._forward_and_backward(np.arange(16), np.ones(16, np.float32), Images().normalizers(range(16)), True)
    found = {id(p): p.grad for p in fresh.model.parameters()}
    theirs = list(fresh.model.losses[2].discriminator.parameters())
    mine = [p for p in fresh.model.parameters() if all(p is not q for q in theirs)]
    for parameter, gradient in zip([*theirs, *mine], wanted, strict=True):
        torch.testing.assert_close(found[id(parameter)], gradient)


def test_without_a_discriminator_the_step_is_the_usual_one_and_the_main_branch_is_left():
    method = build_method("auxiliary_branches")
    model = learning(LINES[:2])
    assert method.step(model, Training()) is None and method.step_kind(model.losses) == StepKind()
    method.whole = model.student
    left = method.finish(model).eval()
    assert type(left) is ResNetForImageClassification
    assert sum(p.numel() for p in left.parameters()) == sum(p.numel() for p in resnet().parameters())
    assert torch.equal(left(IMAGES[:4]).logits, model.student.eval()(IMAGES[:4]).logits)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"branches": -1}, "branches: -1 must be a whole number from 0 to 100"),
        ({"branches": 1.5}, "branches: 1.5 must be a whole number"),
        ({"fusion": "sum"}, "fusion: 'sum' must be attention or mean"),
        ({"discriminator_rate": 0}, "discriminator_rate: 0 must be a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        build_method({"auxiliary_branches": settings})


def test_what_does_not_fit_is_refused_before_any_work():
    method, spec = build_method({"auxiliary_branches": {"branches": 0}}), CaptureSpec()
    with pytest.raises(
        UserError, match="between: there are no branches beside the main one; take teacher, or give some"
    ):
        method.losses([{"adversary": {"between": "branches"}}])
    assert method.losses(LINES) == LINES
    with pytest.raises(UserError, match="method: a roberta gets no branches; give a student of bert, resnet"):
        method.check(task(), tiny_config("roberta"), spec)
    with pytest.raises(UserError, match="method: auxiliary_branches needs a task with one class"):
        method.check(task(labels=None), tiny_config(), spec)
    method.check(task(), tiny_config(), spec)
    assert (last_hidden(tiny_config()), last_hidden(resnet().config)) == (tiny_config().num_hidden_layers, 2)
