"""A vocabulary of a student's own: a part of the teacher's tokens, so that each of its tokens is one of the teacher's.

Then teacher and student read the same tokens under different ids, token for token, and layers can be compared.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from checkpoints.errors import UserError

SETTINGS = ("model_max_length", "padding_side", "truncation_side", "model_input_names")
SPECIAL_IDS = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")


def trimmed(
    tokenizer: PreTrainedTokenizerBase, frequencies: np.ndarray, size: int, spare: Iterable[int] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer with the most frequent of another one's tokens; it writes the others with those.

    Special tokens and all characters of used tokens are kept. Text whose tokens are all kept has the same tokens as before.

    Args:
        tokenizer: a fast one: WordPiece, BPE or Unigram.
        frequencies: the frequencies of its tokens, by id; unused ones are 0.
        size: the maximum number of tokens.
        spare: the ids of tokens that are kept, too, while there is room.

    Raises:
        UserError: it is of another type, or `size` has no room for special tokens and characters.
    """
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model, kind = state["model"], state["model"]["type"]
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise UserError(
            f"a vocabulary of type {kind} cannot be trimmed, only WordPiece, BPE or Unigram; leave it out",
            argument="vocabulary",
        )
    ids = {piece: i for i, (piece, _) in enumerate(model["vocab"])} if kind == "Unigram" else model["vocab"]
    added = {token["content"]: token["id"] for token in state["added_tokens"]}
    used = [piece for piece, i in ids.items() if frequencies[i] > 0]
    bare, parts = _bare(model), _parts(model)
    characters = {character for piece in used for character in bare(piece)}
    bytewise = "ByteLevel" in json.dumps([state["pre_tokenizer"], state["decoder"]])
    kept = {piece for piece in ids if len(bare(piece)) == 1 and (bytewise or bare(piece) in characters)}
    kept |= {piece for piece in ids if piece in added or piece == model.get("unk_token")}
    if model.get("byte_fallback"):
        kept |= {f"<0x{byte:02X}>" for byte in range(256)} & ids.keys()
    unknown = None
    if kind == "Unigram" and model["unk_id"] is not None:
        unknown = model["vocab"][model["unk_id"]][0]
        kept.add(unknown)
    room = size - len(added.keys() - ids.keys())
    if len(kept) > room:
        raise UserError(
            f"{size} has no room for the {size - room + len(kept):,} special tokens and characters of the text; give more",
            argument="vocabulary",
        )
    spare = {*spare}
    filling = [piece for piece, i in ids.items() if i in spare]
    for piece in [*sorted(used, key=lambda piece: (-frequencies[ids[piece]], ids[piece])), *filling]:
        needed = set(parts(piece)) - kept
        if len(kept) + len(needed) <= room:
            kept |= needed
    order = sorted(kept, key=ids.__getitem__)
    new = {piece: i for i, piece in enumerate(order)}
    new |= {
        piece: len(order) + i
        for i, piece in enumerate(sorted(added.keys() - ids.keys(), key=added.__getitem__))
    }
    if kind == "Unigram":
        model["vocab"] = [model["vocab"][ids[piece]] for piece in order]
        model["unk_id"] = None if unknown is None else new[unknown]
    else:
        model["vocab"] = {piece: new[piece] for piece in order}
    if kind == "BPE":
        model["merges"] = [
            merge for merge in model["merges"] if {*_pair(merge), _merged(model, *_pair(merge))} <= kept
        ]
    state["added_tokens"] = sorted(
        (token | {"id": new[token["content"]]} for token in state["added_tokens"]),
        key=lambda token: token["id"],
    )
    state["post_processor"] = _renumbered(state["post_processor"], new)
    state["truncation"] = state["padding"] = None
    settings = {name: getattr(tokenizer, name) for name in SETTINGS}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), **settings, **tokenizer.special_tokens_map
    )


def teacher_ids(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> np.ndarray | None:
    """(V,) the teacher's id of each token of a student; None if the two vocabularies are the same.

    Raises:
        UserError: a token is not one of the teacher's.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours == theirs:
        return None
    if others := sorted(ours.keys() - theirs.keys()):
        raise UserError(
            f"{len(others):,} of the student's {len(ours):,} tokens are not among the teacher's {len(theirs):,} (such as "
            f"{others[0]!r}): give a student of a teacher with the same vocabulary, or none (student=), so that one is made"
        )
    found = np.zeros(max(ours.values()) + 1, np.int64)
    found[list(ours.values())] = [theirs[token] for token in ours]
    return found


def fit_vocabulary(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Let a config have a tokenizer's size and special tokens."""
    config.vocab_size = len(tokenizer)
    for name in SPECIAL_IDS:
        if getattr(config, f"{name}_token_id", None) is not None:
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    return config


def keep_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kept: np.ndarray | None) -> None:
    """Keep only a model's embedding rows for the tokens of a trimmed tokenizer.

    Args:
        kept: (V,) the former ids of its tokens; None if they are the same, and nothing is to be done.
    """
    if kept is None:
        return
    table: Any = model.get_input_embeddings()
    set_table(model, tokenizer, table.weight.detach()[torch.from_numpy(kept)].clone())


def set_table(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weight_VD: torch.Tensor) -> None:
    """Give a model the tokens of a tokenizer, with these embeddings."""
    table: Any = model.get_input_embeddings()
    fit_vocabulary(model.config, tokenizer)
    model.config.vocab_size = len(weight_VD)
    padding = None if table.padding_idx is None else tokenizer.pad_token_id
    model.set_input_embeddings(nn.Embedding.from_pretrained(weight_VD, freeze=False, padding_idx=padding))


def exchange_tokens(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: np.ndarray,
    known: np.ndarray,
    teacher: PreTrainedModel,
) -> None:
    """Let a student's word embeddings be those of other tokens of its teacher.

    A token that it knew keeps its embedding. The embedding of a new one is made of the teacher's, by the affine map that
    brings the teacher's embeddings of the known tokens nearest to the student's (least squares).

    Args:
        tokenizer: that of the other tokens.
        tokens: (V,) the teacher's ids of the other tokens.
        known: (W,) the teacher's ids of the tokens that the student knew.
        teacher: the encoder that the student learned from.
    """
    table: Any = student.get_input_embeddings()
    source: Any = teacher.get_input_embeddings()
    ours_WD = table.weight.detach()[: len(known)].double()
    theirs_TE = source.weight.detach().double()
    theirs_TE = torch.cat([theirs_TE, theirs_TE.new_ones(len(theirs_TE), 1)], dim=1)
    map_ED = torch.linalg.lstsq(theirs_TE[torch.from_numpy(known)], ours_WD).solution
    all_TD = theirs_TE @ map_ED
    all_TD[torch.from_numpy(known)] = ours_WD
    set_table(student, tokenizer, all_TD[torch.from_numpy(tokens)].to(table.weight.dtype))


def begin_as_reduced(student: PreTrainedModel, teacher: PreTrainedModel, kept: np.ndarray | None) -> None:
    """Let a student's word embeddings begin as the teacher's, reduced to its width by a singular value decomposition.

    No table of that width has inner products nearer to the teacher's. If the student's is wider, its further
    columns stay as drawn.

    Args:
        kept: (V,) the teacher's ids of the student's tokens; None if they are the same.
    """
    own: Any = student.get_input_embeddings()
    table: Any = teacher.get_input_embeddings()
    theirs_VD = table.weight.detach()[slice(None) if kept is None else torch.from_numpy(kept)].double()
    _, directions_DD = torch.linalg.eigh(theirs_VD.T @ theirs_VD)  # by rising eigenvalue
    reduced_VW = theirs_VD @ directions_DD.flip(1)[:, : own.embedding_dim]
    with torch.no_grad():
        own.weight[:, : reduced_VW.shape[1]] = reduced_VW.to(own.weight)


def _bare(model: dict[str, Any]) -> Callable[[str], str]:
    """What turns a piece into its text, without the marks of where in a word it stands."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    return lambda piece: piece.removeprefix(prefix).removesuffix(suffix) or piece


def _parts(model: dict[str, Any]) -> Callable[[str], Iterator[str]]:
    """Return a function that yields the tokens that a token needs: itself and, in BPE, all tokens that it is merged from."""
    merges: dict[str, tuple[str, str]] = {}
    if model["type"] == "BPE":
        for merge in model["merges"]:
            merges.setdefault(_merged(model, *_pair(merge)), _pair(merge))

    def parts(piece: str) -> Iterator[str]:
        left = [piece]
        while left:
            part = left.pop()
            left.extend(merges.get(part, ()))
            yield part

    return parts


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """The two pieces of a merge; older files have them as one text."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _merged(model: dict[str, Any], first: str, second: str) -> str:
    return first + second.removeprefix(model.get("continuing_subword_prefix") or "")


def _renumbered(value: Any, ids: dict[str, int]) -> Any:
    """A post-processor with new ids of its special tokens."""
    if isinstance(value, list):
        pair = len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
        return [value[0], ids[value[0]]] if pair else [_renumbered(part, ids) for part in value]
    if not isinstance(value, dict):
        return value
    if "ids" in value and "tokens" in value:
        return value | {"ids": [ids[token] for token in value["tokens"]]}
    return {name: _renumbered(part, ids) for name, part in value.items()}
