"""A process that dies between any two of a save's changes to the disk leaves a whole checkpoint."""

import os
import shutil

from checkpoints import store

CHANGES = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


def save(directory, step):
    """What a job does: write staging, seal, remove the oldest."""
    target = directory / store.step_name(step)
    staging = store.fresh_staging(target)
    (staging / "weights").write_text(f"weights of {step}")
    store.write_json(staging / "state.json", {"step": step})
    store.seal(staging, target)
    store.keep_newest(directory, 2)


def dies_before(change, work):
    """Do `work` in a child that dies before its change number `change`; returns whether it came so far."""
    child = os.fork()
    if child == 0:
        done = 0

        def counted(call):
            def run(*arguments, **named):
                nonlocal done
                done += 1
                if done == change:
                    os._exit(1)
                return call(*arguments, **named)

            return run

        for name in CHANGES:
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1)
    return code == 1


def newest(directory):
    said = []
    found = store.newest(directory, said.append)
    assert not said and (found / "weights").read_text() == f"weights of {int(found.name[5:])}"
    return int(found.name[5:])


def test_a_save_that_dies_anywhere_loses_nothing(tmp_path):
    change, newest_after = 0, []
    while True:
        change += 1
        directory = tmp_path / str(change)
        for step in (1, 2):
            save(directory, step)
        if not dies_before(change, lambda directory=directory: save(directory, 3)):
            break
        newest_after.append(newest(directory))
        save(directory, 3)  # the same command again
        assert newest(directory) == 3
        assert sorted(p.name for p in directory.iterdir()) == [store.step_name(2), store.step_name(3)]
        shutil.rmtree(directory)
    assert len(newest_after) > 8 and newest_after == sorted(newest_after) and set(newest_after) == {2, 3}


def test_an_artefact_made_again_dies_anywhere_and_is_old_or_new(tmp_path):
    """Where a directory is replaced there is a moment without it: the former is then found staging, or made anew."""
    change = 0
    while True:
        change += 1
        target = tmp_path / str(change) / "model"

        def write(text, target=target):
            with store.sealed(target) as staging:
                (staging / "weights").write_text(text)

        write("old")
        if not dies_before(change, lambda: write("new")):
            break
        if target.exists():
            store.verify(target)
            assert (target / "weights").read_text() in ("old", "new")
        write("new")
        store.verify(target)
        assert (target / "weights").read_text() == "new"
    assert change > 8
