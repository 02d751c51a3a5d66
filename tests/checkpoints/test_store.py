import json

import pytest

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.fingerprint import FileHashes, fingerprint


def write(directory, text="weights"):
    with store.sealed(directory) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "a.bin").write_text(text)
        (aside / "b.json").write_text("{}")


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
    with pytest.raises(RuntimeError), store.sealed(target) as aside:
        (aside / "a.bin").write_text("half")
        raise RuntimeError
    with pytest.raises(UserError, match="no space left.*free"), store.sealed(target) as aside:
        raise OSError(28, "No space left on device")
    store.verify(target)
    assert (target / "inner" / "a.bin").read_text() == "former"


def test_only_the_newest_are_kept(tmp_path):
    for step in range(1, 6):
        write(tmp_path / store.step_name(step))
    store.fresh_aside(tmp_path / store.step_name(6))  # a save that was killed
    store.keep_newest(tmp_path, 2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000004", "step-00000005"]


def test_fingerprints_ignore_order_and_see_content(tmp_path):
    assert (
        fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})
    )
    (tmp_path / "data").mkdir()
    file, cache = tmp_path / "data" / "x", tmp_path / "hashes.json"
    file.write_text("one")
    first = FileHashes(cache).of(tmp_path / "data")
    assert FileHashes(cache).of(tmp_path / "data") == first
    file.write_text("another")
    assert FileHashes(cache).of(tmp_path / "data") != first
    cache.write_text("torn {")
    file.write_text("one")
    assert FileHashes(cache).of(tmp_path / "data") == first
    assert json.loads(cache.read_text())


def test_too_little_space_is_told_before_writing(tmp_path):
    store.need_space(tmp_path, 1, "a test")
    with pytest.raises(UserError, match="a test needs 1,000,000,000,000.0 MB.*MB are free.*intact"):
        store.need_space(tmp_path, 10**18, "a test")
