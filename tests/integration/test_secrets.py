"""No secret of the environment may appear in a command line, a log or a file."""

from pathlib import Path

import pytest

from tests.integration.test_hosts import hosts  # noqa: F401

SECRET = "hf_aSecretThatNobodyMaySee"


def command_lines() -> str:
    """The arguments of every process."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return "\n".join(lines)


@pytest.fixture(scope="module")
def secret():
    """The user's token, as `hf auth login` documents it, and one of another tool."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", SECRET)
        patch.setenv("WANDB_API_KEY", SECRET)
        yield


def watched(place, command: str, *arguments: str, tiny: bool = True) -> None:
    """Run a command and search all command lines while it runs, and what it prints."""
    process = place.start(command, *arguments, tiny=tiny)
    while process.poll() is None:
        assert SECRET not in command_lines()
        try:
            output, _ = process.communicate(timeout=0.1)
        except Exception:  # subprocess.TimeoutExpired: it still runs
            continue
        assert process.returncode == 0, output
        assert SECRET not in output


@pytest.mark.slow
def test_no_command_shows_a_secret(started_place, place, secret, hosts):  # noqa: F811
    """What starts no other process is run in a fork, which is quicker."""
    common = ("augment=true", "augmentation.variants=2",
              "augmentation.vectors=none", "masked_lm.max_length=32", "masked_lm.epochs=1")  # fmt: skip
    watched(started_place, "task-distill", "run=secret", *common)
    watched(started_place, "general-distill", "run=secret-hosts", *hosts)
    watched(place, "augment", "run=secret-augment", *common)
    watched(place, "report", "run=secret", tiny=False)
    watched(place, "evaluate", "run=secret", tiny=False)
    watched(place, "export", "run=secret", "to=secret-student", "onnx=false", tiny=False)
    watched(place, "predict", "run=secret", "text=a fine film", tiny=False)
    watched(place, "pareto", tiny=False)
    watched(place, "doctor", "run=secret", tiny=False)
    written = [path for path in started_place.path.rglob("*") if path.is_file()]
    assert len(written) > 50
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
