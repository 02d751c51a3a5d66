import fcntl
import json
import os
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints import fingerprint as fingerprints
from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.fingerprint import FileHashes, fingerprint


def write(directory, text="weights"):
    with store.sealed(directory) as staging:
        (staging / "inner").mkdir()
        (staging / "inner" / "a.bin").write_text(text)
        (staging / "b.json").write_text("{}")


def test_a_sealed_directory_verifies_and_every_kind_of_damage_is_named(tmp_path):
    target = tmp_path / "step-00000001"
    write(target)
    store.verify(target)
    file = target / "inner" / "a.bin"
    for damage, words in (
        (lambda: file.write_text("Weights"), "content"),
        (lambda: file.write_text("weight"), "bytes"),
        (file.unlink, "missing"),
    ):
        damage()
        with pytest.raises(store.Damaged, match=f"a.bin.*{words}"):
            store.verify(target)
        write(target)
    (target / store.MANIFEST).write_text("{")
    with pytest.raises(store.Damaged, match="manifest"):
        store.verify(target)


def test_the_newest_whole_checkpoint_is_used_and_the_damaged_one_named(tmp_path):
    for step in (5, 10, 20):
        write(tmp_path / store.step_name(step))
    (tmp_path / store.step_name(20) / "b.json").write_text("[]")
    said = []
    assert store.newest(tmp_path, said.append) == tmp_path / store.step_name(10)
    assert len(said) == 1 and "step-00000020" in said[0] and "b.json" in said[0]


def test_a_write_that_fails_leaves_the_former_content(tmp_path):
    target = tmp_path / "model"
    write(target, "former")
    with pytest.raises(RuntimeError), store.sealed(target) as staging:
        (staging / "a.bin").write_text("half")
        raise RuntimeError
    with pytest.raises(UserError, match="no space left.*free"), store.sealed(target) as staging:
        raise OSError(28, "No space left on device")
    with pytest.raises(FileNotFoundError, match="model"), store.sealed(target) as staging:
        save_file({"a": np.ones(1)}, staging / "vanished" / "a.safetensors")
    store.verify(target)
    assert (target / "inner" / "a.bin").read_text() == "former"


def test_of_two_that_make_the_same_content_at_once_the_first_stays(tmp_path):
    target = tmp_path / "rows"
    with store.sealed(target, shared=True) as late:
        (late / "a.bin").write_text("tokens")
        late = late.rename(tmp_path / "elsewhere")  # another process, whose name differs by its id
        with store.sealed(target, shared=True) as early:
            (early / "a.bin").write_text("tokens")
        first = (target / "a.bin").stat().st_ino
        late.rename(early)
    assert store.is_verified(target) and (target / "a.bin").stat().st_ino == first
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    (target / "a.bin").write_text("Tokens")
    with pytest.raises(store.Damaged):
        store.verify_once(target)


def test_only_the_newest_are_kept(tmp_path):
    for step in range(1, 6):
        write(tmp_path / store.step_name(step))
    store.fresh_staging(tmp_path / store.step_name(6))  # a save that was killed
    store.keep_newest(tmp_path, 2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000005"]


def test_fingerprints_ignore_order():
    assert (
        fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})
    )


def test_hashes_of_files_see_content_whatever_the_clock_and_the_cache_say(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    file, cache = tmp_path / "data" / "x", tmp_path / "hashes.json"
    file.write_text("one")
    first = FileHashes(cache).of(tmp_path / "data")
    assert not cache.exists()  # so young a file may change again unseen
    monkeypatch.setattr(fingerprints, "RECENT", -(10**19))
    for torn in ("torn {", "[]", '{"x": 1}', "\0"):
        cache.write_text(torn)
        assert FileHashes(cache).of(tmp_path / "data") == first and len(json.loads(cache.read_text())) > 0
    known = json.loads(cache.read_text())
    monkeypatch.setattr(fingerprints, "sha256_file", lambda path: pytest.fail("it is known"))
    assert FileHashes(cache).of(tmp_path / "data") == first
    monkeypatch.undo()
    monkeypatch.setattr(fingerprints, "RECENT", -(10**19))
    for entry in ([], [*known[str(file)][:-1]], [*known[str(file)][:-1], 7]):
        cache.write_text(json.dumps({str(file): entry}))
        assert FileHashes(cache).of(tmp_path / "data") == first
    for seconds in (0, 4e9, 1e9):  # 1970, 2096, 2001
        os.utime(file, (seconds, seconds))
        assert FileHashes(cache).of(tmp_path / "data") == first
        time.sleep(0.02)  # a tick of the file system's clock
        file.write_text("two" if file.read_text() == "one" else "one")  # of the same size
        os.utime(file, (seconds, seconds))  # and the same modification time
        changed = FileHashes(cache).of(tmp_path / "data")
        assert changed != first
        first = changed


def test_a_manifest_that_leads_out_of_its_directory_is_refused(tmp_path):
    write(tmp_path / "model")
    outside = tmp_path / "outside"
    outside.write_text("secret")
    about = {"size": 6, "sha256": fingerprints.sha256_file(outside)}
    for name in ("../outside", str(outside), "inner/../../outside"):
        (tmp_path / "model" / store.MANIFEST).write_text(json.dumps({"files": {name: about}}))
        with pytest.raises(store.Damaged, match="not inside the directory"):
            store.verify(tmp_path / "model")
    for odd in (
        "{}",
        '{"files": {}}',
        '{"files": {"b.json": 3}}',
        '{"files": {"%s": {"size": 1, "sha256": ""}}}',
    ):
        (tmp_path / "model" / store.MANIFEST).write_text(odd.replace("%s", 300 * "long"))
        with pytest.raises(store.Damaged):
            store.verify(tmp_path / "model")


def test_too_little_space_is_told_before_writing(tmp_path):
    store.need_space(tmp_path, 1, "a test")
    with pytest.raises(UserError, match="a test needs 1,000,000,000,000.0 MB.*MB are free.*intact"):
        store.need_space(tmp_path, 10**18, "a test")


def test_a_file_is_not_opened_to_append_while_its_room_is_reserved(tmp_path, monkeypatch):
    """Where a disk cannot reserve, the C library writes in its place, which a file that is open to append refuses."""
    modes, reserve = [], os.posix_fallocate

    def reserved(file, offset, size):
        modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & (os.O_APPEND | os.O_ACCMODE))
        reserve(file, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", reserved)
    store.reserve(tmp_path / "file", 100)
    assert modes == [os.O_RDWR] and (tmp_path / "file").stat().st_size == 100


def test_the_hash_of_a_model_covers_what_is_read_of_it(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    hashes = FileHashes(tmp_path / "hashes.json")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        (model / name).write_text(name)
    first = hashes.of_model(model)
    (model / "runs" / "Nov26").mkdir(parents=True)
    notes = (
        "README.md",
        "all_results.json",
        "notes.txt",
        "events.out.tfevents.1",
        "training_args.bin",
        "runs/Nov26/x",
    )
    for name in (*notes, ".DS_Store", "pytorch_model.bin"):
        (model / name).write_text("a note")
    assert hashes.of_model(model) == first
    seen = {first}
    read = (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "spiece.model",
    )
    for name in (*read, "model-00002-of-00002.safetensors", "model.safetensors.index.json"):
        (model / name).write_text(f"other {name}")
        assert hashes.of_model(model) not in seen, name
        seen.add(hashes.of_model(model))
    for path in model.glob("*.safetensors"):
        path.unlink()
    of_bin = hashes.of_model(model)
    (model / "pytorch_model.bin").write_text("other weights")
    assert hashes.of_model(model) != of_bin
