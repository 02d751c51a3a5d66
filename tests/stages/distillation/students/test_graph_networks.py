"""Networks of nodes, and the loss on their states, each against a plain loop over nodes."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from stages.distillation.losses import TypedRelations
from stages.distillation.outputs import ModelOutputs
from stages.distillation.students.graph_networks import AutoModelForNodeClassification, HANConfig, RGCNConfig
from stages.tasks.graph_rows import Graph, NodeRows
from stages.tasks.kinds import Nodes
from stages.tasks.types import UNLABELLED

GRAPH = Graph(
    {"film": list("abcd"), "person": list("xyz")},
    {
        ("film", "by", "person"): [(0, 0), (1, 0), (1, 1), (3, 1)],
        ("person", "likes", "film"): [(0, 3), (2, 3)],
    },
)
KIND = Nodes(("good", "bad"), graph=GRAPH, class_weights=(0.5, 2.0))


def network(config: type[RGCNConfig], **sizes):
    torch.manual_seed(0)
    made = config(hidden_size=4, num_hidden_layers=2, initializer_range=0.5, **sizes)
    KIND.configure(made)
    return AutoModelForNodeClassification.from_config(made).eval()


def neighbours(path: int, node: int) -> list[int]:
    """Of a node, along relation path // 2, forwards (even: the node is a target) or backwards."""
    relation, sources, targets = GRAPH.edges_3E.tolist()
    if path % 2:
        sources, targets = targets, sources
    return [s for r, s, t in zip(relation, sources, targets, strict=True) if r == path // 2 and t == node]


def mean_message(message, states, near, node):
    return message.linear(states[near].mean(0) if near else torch.zeros(4))


def attentive_message(message, states, near, node):
    if not near:
        return torch.zeros(4)
    scores = functional.leaky_relu(message.of_source(states[near]) + message.of_target(states[node]), 0.2)
    values = message.linear(states[near]).view(len(near), message.heads, -1)
    return (scores.softmax(0)[..., None] * values).sum(0).flatten()


@pytest.mark.parametrize("config, message_of", [(RGCNConfig, mean_message), (HANConfig, attentive_message)])
def test_a_network_is_the_plain_loop_over_nodes_and_neighbours(config, message_of, tmp_path):
    model = network(config, **({"num_attention_heads": 2} if config is HANConfig else {}))
    ends = {0: range(4, 7), 1: range(4), 2: range(4), 3: range(4, 7)}  # path -> the nodes that it leads to
    with torch.no_grad():
        found = model(GRAPH.edges_3E, output_hidden_states=True)
        states = model.embeddings.weight
        for number, layer in enumerate(model.layers):
            inputs = states if number == 0 else states.relu()
            new = []
            for nodes in (range(4), range(4, 7)):
                received = [torch.stack([layer.own(inputs[node]) for node in nodes])]
                for path, message in enumerate(layer.messages):
                    if nodes == ends[path]:
                        made = [message_of(message, inputs, neighbours(path, node), node) for node in nodes]
                        received.append(torch.stack(made))
                weights = [1.0] * len(received)
                if layer.semantic is not None:
                    weights = torch.stack([layer.semantic(of).mean() for of in received]).softmax(0)
                new.append(sum(weight * of for weight, of in zip(weights, received, strict=True)))
            states = torch.cat(new)
            torch.testing.assert_close(found.hidden_states[number + 1][0], states)
        torch.testing.assert_close(found.logits[0], model.classifier(states[:4].relu()))
        model.save_pretrained(tmp_path)
        again = AutoModelForNodeClassification.from_pretrained(tmp_path)
        torch.testing.assert_close(again(GRAPH.edges_3E).logits, found.logits)


def outputs(seed: int, width: int) -> ModelOutputs:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(1, 7, width, generator=generator)
    return ModelOutputs(
        torch.randn(1, 4, 2, generator=generator), {2: states}, named={"edges": GRAPH.edges_3E[None]}
    )


@pytest.mark.parametrize("statistic", ["classes", "edges"])
def test_relations_between_types_are_the_plain_loop(statistic):
    model = network(RGCNConfig)
    student, teacher, labels = outputs(1, 4), outputs(2, 6), torch.tensor([[0, 1, -1, -1]])

    def classes(states):
        of = [torch.eye(2)[0], torch.eye(2)[1], *teacher.logits_BC[0, 2:].softmax(-1)]
        for node in range(4, 7):
            near = neighbours(0, node) + neighbours(3, node)
            of.append(sum(of[i] for i in near) / len(near))
        means = [
            sum(of[i][c] * states[i] for i in nodes) / sum(of[i][c] for i in nodes)
            for nodes in (range(4), range(4, 7))
            for c in range(2)
        ]
        return _cosines(torch.stack(means))

    def edges(states):
        found = []
        for path in range(4):
            for node in range(7):
                if near := neighbours(path, node):
                    found.append(torch.cosine_similarity(states[node], states[near].mean(0), dim=0))
        return torch.stack(found)

    statistic_of = classes if statistic == "classes" else edges
    mine, theirs = (statistic_of(of.hidden_BLW[2][0]) for of in (student, teacher))
    loss = TypedRelations(model.config, statistic=statistic)
    torch.testing.assert_close(loss(student, teacher, labels=labels), (mine - theirs).square().mean())
    assert loss(teacher, teacher, labels=labels) < 1e-10


def _cosines(means_KW: torch.Tensor) -> torch.Tensor:
    centred = means_KW - means_KW.mean(0)
    return torch.stack(
        [torch.stack([torch.cosine_similarity(a, b, dim=0) for a in centred]) for b in centred]
    )


def test_training_rows_ask_the_teacher_of_all_films_and_gold_of_their_own():
    from stages.distillation.losses import GoldLabels, SoftLabels
    from stages.tasks.types import Split

    split = Split(["d", "b"], None, [0, 1])
    rows = NodeRows.of(GRAPH, split, others=UNLABELLED)
    assert rows.normalizers(np.arange(1)) == {"rows": 1, "tokens": 1, "pairs": 1, "targets": 4, "labels": 2}
    batch, said = rows.collate(np.arange(1), np.ones(1, np.float32)), outputs(1, 4)
    gold = GoldLabels(class_weights=KIND.class_weights).terms(said, None, batch)["gold_labels"]
    logs = said.logits_BC[0].log_softmax(-1)
    torch.testing.assert_close(gold.sum, -(0.5 * logs[3, 0] + 2.0 * logs[1, 1]))
    soft = SoftLabels().terms(said, outputs(2, 6), batch)["soft_labels"]
    torch.testing.assert_close(soft.sum, -(outputs(2, 6).logits_BC[0].softmax(-1) * logs).sum())
    assert NodeRows.of(GRAPH, split).targets.tolist() == [2]
