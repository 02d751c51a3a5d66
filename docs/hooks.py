"""What the site takes from outside of docs/: the README as its home page, and pages of the public API.

mkdocs runs this (`hooks:` in mkdocs.yml).
"""

import ast
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the root that are pages, and the pages' names."""

LINKED = (
    "CITATION.cff",
    "LICENSE",
    *(f"pipeline/config/presets/{name}.yaml" for name in ("small", "layers", "compact", "tinybert4")),
    "stages/tasks/convnet/preprocessor_config.json",
)
"""Files that pages link to."""

API = {
    "A whole run": ("pipeline", ["distill", "general_distill", "Result"]),
    "Models under distillation": ("stages.distillation", []),
    "Losses": ("stages.distillation.losses", []),
    "The trainer": ("stages.distillation.trainer", ["DistillationTrainer"]),
    "Augmentation": ("data_aug", []),
}
"""Heading -> (module, what of it is public; none: see `_public`)."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the files that pages link to."""
    for name, page in BESIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for other, target in BESIDE.items():
            text = text.replace(f"({other}", f"({target}")
        files.append(File.generated(config, page, content=re.sub(r"\]\(docs/", "](", text)))
    for name in LINKED:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "api.md", content=_api()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to the root of the checkout lead to the pages made of it."""
    for name, target in BESIDE.items():
        markdown = markdown.replace(f"(../{name}", f"({target}")
    return markdown.replace("(../pipeline/", "(pipeline/").replace("(../stages/", "(stages/")


def _api() -> str:
    lines = [
        "# API",
        "",
        "What is public, as its docstrings say. How the parts go together: [from Python](python.md).",
    ]
    for heading, (module, names) in API.items():
        lines += ["", f"## {heading}"]
        lines += [f"\n::: {module}.{name}" for name in names or _public(module)]
    return "\n".join(lines)


def _public(module: str) -> list[str]:
    """The classes and functions in a package's `__all__`; without one, what it takes from its own modules."""
    tree = ast.parse((ROOT / module.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.isupper()]
    taken = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(module)
    ]
    return [alias.name for node in taken for alias in node.names]
