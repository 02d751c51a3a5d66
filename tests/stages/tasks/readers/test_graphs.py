"""Graphs from directories of CSV files, and the packaged films."""

import sqlite3

import pytest

from checkpoints.errors import UserError
from stages.tasks.graph_rows import Graph
from stages.tasks.readers import graphs
from stages.tasks.task import find_task, load_task

FILES = {
    "nodes-film.csv": "id,label,split\nf1,good,train\nf2,bad,dev\nf3,,\nf4,bad,train\nf5,good,test\n",
    "nodes-actor.csv": "id\n7\n8\n",
    "edges-stars.csv": "actor,film\n7,f1\n8,f3\n",
    "edges-knows.csv": "film,actor\nf5,8\n",
}


def write(path, change=None):
    for name, text in (FILES | (change or {})).items():
        (path / name).write_text(text)
    return path


def test_a_directory_is_read_as_it_says(tmp_path):
    source = find_task("mine", data=str(write(tmp_path)))
    task = load_task(source)
    assert source.reader == "graphs" and task.labels == ("bad", "good") and task.selection == "f1"
    assert {role: (split.text_a, split.labels) for role, split in task.splits.items()} == {
        "train": (["f1", "f4"], [1, 0]),
        "dev": (["f2"], [0]),
        "test": (["f5"], [1]),
        "unlabelled": (["f3"], [-1]),
    }
    graph = task.kind.graph
    assert list(graph.nodes) == ["film", "actor"]  # those with classes first
    assert graph.edges == {("film", "knows", "actor"): [(4, 1)], ("actor", "stars", "film"): [(0, 0), (1, 2)]}
    assert graph.edges_3E.tolist() == [[0, 1, 1], [4, 5, 6], [6, 0, 2]]
    assert task.kind.class_weights == (1.0, 1.0)
    graph.save_pretrained(tmp_path)
    assert Graph.load(tmp_path) == graph
    (tmp_path / "graph.json").write_text('{"nodes": [1]}')
    with pytest.raises(UserError, match="graph.json cannot be read as a graph"):
        Graph.load(tmp_path)


def test_edges_within_a_type_join_two_nodes(tmp_path):
    write(tmp_path, {"edges-cites.csv": "film,film\nf5,f1\n"})
    graph = load_task(find_task("", data=str(tmp_path))).kind.graph
    (ends,) = graph.edges["film", "cites", "film"]
    films = graph.nodes["film"]
    assert [films[end] for end in ends] == ["f5", "f1"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"edges-knows.csv": "film,city\nf5,8\n"}, "has the columns film, city; give two, each named after"),
        ({"edges-knows.csv": "film,actor\nf5,9\n"}, "line 2: there is no actor '9'; add it to nodes-actor.csv"),
        ({"nodes-actor.csv": "id\n7\n7\n"}, "line 3: the id '7' is empty or repeated"),
        ({"nodes-actor.csv": "name\n7\n"}, "line 2: the id '' is empty or repeated"),
        ({"nodes-actor.csv": "id,label\n7,a\n8,b\n"}, "have labels, but one type of nodes may"),
        ({"nodes-film.csv": "id\nf1\nf2\nf3\nf4\nf5\n"}, "has a column label; add it"),
        ({"nodes-film.csv": FILES["nodes-film.csv"].replace("dev", "valid")}, "'valid' must be train, dev or test"),
        ({"nodes-film.csv": FILES["nodes-film.csv"].replace("dev", "train")}, "no labelled node is in dev"),
        ({"nodes-film.csv": FILES["nodes-film.csv"].replace("bad", "good")}, "give at least two classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_with_its_file(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        load_task(find_task("mine", data=str(write(tmp_path, change))))


def test_a_graph_takes_no_columns_and_no_other_metrics(tmp_path):
    write(tmp_path)
    with pytest.raises(UserError, match="is a graph, whose columns are named"):
        find_task("mine", data=str(tmp_path), label_column="label")
    with pytest.raises(UserError, match="'pearson' does not fit"):
        find_task("mine", data=str(tmp_path), metric="pearson")


def test_films_have_their_first_genre_of_three_and_people_of_several_films(tmp_path, monkeypatch):
    base = tmp_path / "movies.db"
    with sqlite3.connect(base) as written:
        written.execute('CREATE TABLE omdb ("imdbID", "Genre", "Director", "Cast")')
        rows = [
            ("t1", "Crime, Drama, Action", "Ann", "Bo, Cy"),
            ("t0", "Comedy", "Ann, Dee", "Cy"),
            ("t2", "Horror", "Dee", "Bo"),
            ("t3", "Action", None, "Bo, Bo"),
        ]
        written.executemany("INSERT INTO omdb VALUES (?, ?, ?, ?)", rows)
    monkeypatch.setattr(graphs, "inside", lambda package, path: base)
    monkeypatch.setattr(graphs, "split_of", {"t0": "train", "t1": "dev", "t3": "test"}.get)
    task = load_task(find_task("films"))
    assert task.splits["train"].text_a == ["t0"] and task.splits["dev"].text_a == ["t1"]
    assert [task.labels[split.labels[0]] for split in task.splits.values()] == ["Comedy", "Drama", "Action"]
    graph = task.kind.graph
    assert graph.nodes == {"film": ["t0", "t1", "t3"], "director": ["Ann"], "actor": ["Cy", "Bo"]}
    assert graph.edges["film", "has", "actor"] == [(0, 0), (1, 1), (1, 0), (2, 1)]
