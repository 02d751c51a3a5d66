"""Classes of nodes in a heterogeneous graph: the films of bokeh-sampledata, or a directory of CSV files.

A directory has `nodes-TYPE.csv` for each type of nodes, with a column `id`, and `edges-NAME.csv` for each relation, whose
two columns are named after the types that they join. One type of nodes has a column `label`; where a label is empty, the
class is not known. It may have a column `split` of train, dev and test.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.kinds import Nodes
from stages.tasks.packages import inside
from stages.tasks.tables import open_table, read_rows
from stages.tasks.text import hashed, slug
from stages.tasks.types import UNLABELLED, Split, Task, TaskRequest, TaskSource

TASKS = ("films",)
GENRES = ("Action", "Comedy", "Drama")
ROLES = ("train", "dev", "test")


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the films or of a directory of nodes and edges; None for others."""
    if task := request.packaged(TASKS):
        path = inside("bokeh_sampledata", "_data/movies.db")
        return TaskSource(task, "graphs", task=task, files={"films": str(path)}, metric=request.metric)
    files = {path.stem: str(path.resolve()) for path in sorted(Path(request.data or ".").glob("*-*.csv"))}
    files = {role: path for role, path in files.items() if role.startswith(("nodes-", "edges-"))}
    if not request.data or not any(role.startswith("nodes-") for role in files):
        return None
    if request.text_columns or request.label_column:
        raise UserError(
            f"{request.data!r} is a graph, whose columns are named id, label and split; leave this out",
            argument="text_columns" if request.text_columns else "label_column",
        )
    metrics.select(request.metric, Nodes.reported)
    name = slug(request.task or Path(request.data).name)
    return TaskSource(name, "graphs", files=files, metric=request.metric, text=["id"])


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the graph, and the splits of its nodes."""
    if source.task == "films":
        nodes, edges, labels = _films(Path(source.files["films"]))
        splits = {name: split_of(name) for name in labels}
    else:
        nodes, edges, labels, splits = _directory(source.files)
    classes = tuple(sorted({*labels.values()} - {""}))
    if len(classes) < 2:
        raise UserError(f"{source.name}: the nodes have the labels {classes}; give at least two classes")
    rows: dict[str, list[tuple[tuple[str], int]]] = {role: [] for role in (*ROLES, "unlabelled")}
    for name, label in labels.items():
        of = classes.index(label) if label else UNLABELLED
        rows[splits[name] if label else "unlabelled"].append(((name,), of))
    for role in ROLES[:2]:
        if not rows[role]:
            raise UserError(
                f"{source.name}: no labelled node is in {role}; give the column split some of {role}"
            )
    found = {role: Split.of(nodes_of) for role, nodes_of in rows.items() if nodes_of}
    counts = Counter(found["train"].labels)
    weights = tuple(
        sum(counts.values()) / (len(counts) * counts[i]) if counts[i] else 1.0 for i in range(len(classes))
    )
    from stages.tasks.graph_rows import Graph  # numpy, which planning does without

    kind = Nodes(classes, graph=Graph(nodes, edges), class_weights=weights)
    return Task(source.name, kind, found, *metrics.select(source.metric, Nodes.reported))


def split_of(name: str) -> str:
    """Return the split of a node by its id alone: 25 of 100 are test, 15 dev, the rest train."""
    percent = hashed(name) % 100
    return "test" if percent < 25 else "dev" if percent < 40 else "train"


Edges = dict[tuple[str, str, str], list[tuple[int, int]]]


def _films(path: Path) -> tuple[dict[str, list[str]], Edges, dict[str, str]]:
    """The films that are action, comedy or drama, by the first of these that they are; who directed or acted in several of them."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as base:
        rows = base.execute(
            'SELECT "imdbID", "Genre", "Director", "Cast" FROM omdb ORDER BY "imdbID"'
        ).fetchall()
    labels: dict[str, str] = {}
    named: list[tuple[list[str], ...]] = []
    for name, genres, *cells in rows:
        genre = next((genre for genre in _names(genres) if genre in GENRES), None)
        if genre and name not in labels:
            labels[name] = genre
            named.append(tuple(_names(cell) for cell in cells))
    nodes, edges = {"film": list(labels)}, {}
    for role, of_films in zip(("director", "actor"), zip(*named, strict=True), strict=True):
        films = Counter(name for of_film in of_films for name in of_film)
        nodes[role] = [name for name, count in films.items() if count > 1]
        numbers = {name: number for number, name in enumerate(nodes[role])}
        edges["film", "has", role] = [
            (film, numbers[name])
            for film, of_film in enumerate(of_films)
            for name in of_film
            if name in numbers
        ]
    return nodes, edges, labels


def _names(cell: str | None) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in (cell or "").split(",") if name.strip()))


def _directory(files: dict[str, str]) -> tuple[dict[str, list[str]], Edges, dict[str, str], dict[str, str]]:
    """The nodes, edges, labels and splits of a user's files."""
    nodes: dict[str, dict[str, int]] = {}
    labels: dict[str, str] = {}
    splits: dict[str, str] = {}
    labelled = ""
    for role, path in files.items():
        if not role.startswith("nodes-"):
            continue
        ids: dict[str, int] = {}
        for line, row in _rows(path):
            name = row.get("id", "")
            if not name or name in ids:
                raise UserError(
                    f"{path}, line {line}: the id {name!r} is empty or repeated; give each node its own id"
                )
            if "label" in row:
                if labelled not in ("", path):
                    raise UserError(
                        f"{path} and {labelled} have labels, but one type of nodes may; remove a column label"
                    )
                labelled, labels[name] = path, row["label"]
                splits[name] = row.get("split") or split_of(name)
                if splits[name] not in ROLES:
                    raise UserError(
                        f"{path}, line {line}: split {splits[name]!r} must be train, dev or test; correct it"
                    )
            ids[name] = len(ids)
        kind = role.removeprefix("nodes-")
        nodes = {kind: ids} | nodes if labelled == path else nodes | {kind: ids}
    if not labelled:
        raise UserError(
            f"none of {', '.join(file for file in files if file.startswith('nodes-'))} has a column label; add it to the "
            "nodes that have classes"
        )
    edges: Edges = {}
    for role, path in files.items():
        if not role.startswith("edges-"):
            continue
        columns = open_table(Path(path)).columns
        if len(columns) != 2 or not {*columns} <= nodes.keys():
            raise UserError(
                f"{path} has the columns {', '.join(columns)}; give two, each named after one of {', '.join(nodes)}"
            )
        source, target = columns
        of = edges[source, role.removeprefix("edges-"), target] = []
        for line, row in _rows(path):
            first, second = row.values()  # by place: both columns may have one name
            for kind, name in zip(columns, (first, second), strict=True):
                if name not in nodes[kind]:
                    raise UserError(
                        f"{path}, line {line}: there is no {kind} {name!r}; add it to nodes-{kind}.csv, or remove the line"
                    )
            of.append((nodes[source][first], nodes[target][second]))
    if not edges:
        raise UserError(
            f"{', '.join(files)} have no edges; give edges-NAME.csv with the two ids of each edge"
        )
    return {kind: list(ids) for kind, ids in nodes.items()}, edges, labels, splits


def _rows(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table, their cells as text."""
    for line, row in read_rows(Path(path)):
        yield line, {column: "" if cell is None else str(cell) for column, cell in row.items()}
