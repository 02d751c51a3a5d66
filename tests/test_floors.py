"""Imports run down the floors of the house, in no circle, and nothing is found by a string."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"checkpoints", "data_aug", "stages.distillation", "stages.tasks"},
    {"stages.training", "stages.evaluation"},
    {"stages"},
    {"pipeline"},
)
"""The rooms, from the ground up. A room may import from its own floor and from those below."""
ROOMS = {room: number for number, floor in enumerate(FLOORS) for room in floor}
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text()
    )
    for package in ("checkpoints", "data_aug", "stages", "pipeline")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module imports, in functions too, but not for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imports(node)


def module_of(name: str) -> str:
    """Return our module that an imported name is, or is defined in; "" for a library's."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name


def room_of(module: str) -> str:
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)


MODULES = {module: {module_of(name) for name in imports(tree)} - {""} for module, tree in SOURCES.items()}


def test_imports_run_down() -> None:
    up = [
        f"{module} imports {other}"
        for module, others in MODULES.items()
        for other in others
        if ROOMS[room_of(other)] > ROOMS[room_of(module)]
    ]
    assert not up
    assert (room_of("stages.augment"), room_of("stages.tasks.readers.glue")) == ("stages", "stages.tasks")


def test_imports_make_no_circle() -> None:
    TopologicalSorter(MODULES).prepare()  # raises a CycleError that names the modules
    rooms: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, others in MODULES.items():
        rooms[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)}
    TopologicalSorter(rooms).prepare()


def test_what_is_done_with_a_finished_student_needs_no_training_engine() -> None:
    """DeepSpeed, when it is imported, warns on a machine without a GPU."""
    reached = {module for module in MODULES if module.startswith(("pipeline.deploy.", "pipeline.report."))}
    reached |= {"data_aug", "stages.distillation", "stages.distillation.trainer"}
    while new := {other for module in reached for other in MODULES[module]} - reached:
        reached |= new
    found = [module for module in reached if any(n.startswith("deepspeed") for n in imports(SOURCES[module]))]
    assert not found and "stages.training.progress" in reached


def test_nothing_is_imported_by_a_string_or_kept_in_a_namespace() -> None:
    forbidden = {"import_module", "__import__", "SimpleNamespace"}
    found = [
        f"{module}: {name}"
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        for name in (getattr(node, "id", ""), getattr(node, "attr", ""), getattr(node, "name", ""))
        if name in forbidden
    ]
    assert not found
