"""A recipe of a graph through the real command: made, killed, resumed, shown, exported, asked."""

import csv
import json

import pytest
import yaml

RECIPE = {
    "seeds": [1],
    "baseline": "alone",
    "tuning": {"epochs": 12, "batch_size": 1, "learning_rate": 3.0e-2},
    "base": {
        "student": {"kind": "rgcn", "layers": 1, "width": 4},
        "training": {"epochs": 12, "batch_size": 1, "learning_rate": 3.0e-2},
    },
    "students": {
        "alone": {"losses": ["gold_labels"]},
        "both": {"losses": ["gold_labels", "soft_labels", "typed_relations"]},
        "attentive": {
            "student": {"kind": "han", "heads": 2},
            "losses": ["soft_labels", {"typed_relations": {"statistic": "edges"}}],
        },
    },
}
GIVEN = ("name=graphs.yaml", "teacher=packaged-rgcn", "task=nodes", "data=graph", "text_columns=", "label_column=",
         "reuse=false")  # fmt: skip


@pytest.fixture(scope="module")
def graph(place):
    folder = place.path / "graph"
    folder.mkdir()
    (place.path / "graphs.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    splits = ["train", "train", "dev", "test"]
    films = [f"f{i},{'' if i == 7 else ('red', 'green', 'blue')[i % 3]},{splits[i % 4]}" for i in range(48)]
    (folder / "nodes-film.csv").write_text("\n".join(["id,label,split", *films]))
    (folder / "nodes-person.csv").write_text("\n".join(["id", *(f"p{i}" for i in range(9))]))
    edges = [f"f{i},p{i % 3 + 3 * (i * 7 % 3)}" for i in range(48)]
    (folder / "edges-by.csv").write_text("\n".join(["film,person", *edges]))
    status, output = place.run("recipe", *GIVEN, "run=graphs")
    assert status == 0 and "1 graph x 12 epochs" in output, output
    return place.path / "runs/graphs-seed1"


def test_a_run_is_shown_and_compared(place, graph):
    results = json.loads((graph / "evaluate/model/results.json").read_text())
    assert results.keys() == {"teacher", "alone", "both", "attentive"}
    assert results["both"]["label_loyalty"] is not None and results["both"]["flops"] > 0
    for command in (("report", "run=graphs-seed1"), ("pareto", "task=nodes")):
        status, output = place.run(*command, tiny=False)
        assert status == 0, output


@pytest.mark.slow
def test_a_network_of_nodes_killed_and_resumed_is_bitwise_the_same(place, graph):
    place.resumes("graphs-seed1", ("teacher", "attentive"), *GIVEN, command="recipe")


def test_an_export_labels_every_node_and_refuses_others(place, graph):
    status, output = place.run("export", "run=graphs-seed1", "to=exported-graphs", tiny=False)
    assert status == 0 and "AutoModelForNodeClassification" in output, output
    assert "no ONNX files" in output and not (place.path / "exported-graphs/onnx").exists()
    of_nodes = ("predict", "model=exported-graphs", "file=graph/nodes-film.csv", "to=nodes.csv")
    status, output = place.run(*of_nodes, tiny=False)
    assert status == 0, output
    with open(place.path / "nodes.csv", newline="") as file:
        found = {row["id"]: row["predicted_label"] for row in csv.DictReader(file)}
    assert len(found) == 48 and found["f7"] in ("red", "green", "blue")
    with open(graph / "test_predictions.csv", newline="") as file:
        evaluated = {row["text"]: row["attentive"] for row in csv.DictReader(file)}
    assert evaluated == {name: found[name] for name in evaluated}
    status, output = place.run("predict", "model=exported-graphs", "text=f99", tiny=False)
    assert status == 2 and "has no node 'f99' with a class" in " ".join(output.split()), output


@pytest.mark.parametrize(
    "change, words",
    [
        ("base.student.kind=", "'' does not read graphs; a student of them is of kind rgcn or han"),
        ("students.attentive.student.heads=3", "must be a multiple of heads=3"),
        ("teacher=teacher", "a bert does not read graphs; give packaged-rgcn"),
        ("students.alone.losses=[distillation_token]", "a rgcn has no distillation token"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(place, graph, change, words):
    status, output = place.run("recipe", *GIVEN, "run=wrong-graphs", change)
    assert status == 2 and words in " ".join(output.split()), output
