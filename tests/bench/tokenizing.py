"""How fast a corpus is tokenized, beside the tokenizer alone; and what a killed run keeps.

    .venv/bin/python -m tests.bench.tokenizing CORPUS                 # text files, or a directory of them
    .venv/bin/python -m tests.bench.tokenizing CORPUS --turns 3       # all of it three times, in turn

In turn: the tokenizer alone (`encode_batch` of the texts already in memory, on one core); a stage's rows with one
process and with two, from reading the files to the sealed rows; and two processes that are killed half-way, and the
same command after that. All use the packaged teacher's tokenizer and rows of 128 tokens. On a busy machine trust the
processor time alone.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.launch.child_process import keep_freed_memory

LENGTH = 128


class Used(NamedTuple):
    """What tokenizing took: seconds, seconds of the processors, and MB of memory in the largest process."""

    seconds: float
    processor: float
    memory: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", help="as CORPUS= of the commands")
    parser.add_argument("--turns", type=int, default=1, help="how often all is measured [1]")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of them [1 2]")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    o = parser.parse_args()
    keep_freed_memory()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
    if o.run:
        return tokenize(o.corpus, Path(o.run[0]), int(o.run[1]))
    found: dict[str, list[Used]] = {}
    for _ in range(o.turns):
        alone, megabytes = tokenizer_alone(o.corpus)
        found.setdefault("tokenizer alone", []).append(alone)
        for processes in o.processes:
            with tempfile.TemporaryDirectory(prefix="tokenizing-") as directory:
                used = run(o.corpus, Path(directory), processes)
                rows = digest(Path(directory))
            found.setdefault(f"processes: {processes}", []).append(used)
            print(f"processes: {processes}, the largest takes {used.memory:.0f} MB", flush=True)
        with tempfile.TemporaryDirectory(prefix="tokenizing-") as directory:
            run(o.corpus, Path(directory), processes, kill_after=used.seconds / 2)
            kept = len(list(Path(directory).glob("runs/r/.tokenizing-*/shard-*")))
            rest = run(o.corpus, Path(directory), processes)
            same = digest(Path(directory)) == rows
        print(
            f"killed after {used.seconds / 2:.1f} s of {used.seconds:.1f}: {kept} shards kept, "
            f"{rest.seconds:.1f} s more, {'the same rows' if same else 'OTHER ROWS'}"
        )
    print(f"\n{megabytes:.1f} MB of text, median of {o.turns}; in brackets the lowest and highest ratio")
    for name, all_used in found.items():
        pairs = list(zip(found["tokenizer alone"], all_used, strict=True))
        ratios = [alone.seconds / used.seconds for alone, used in pairs]
        of_processor = statistics.median(alone.processor / used.processor for alone, used in pairs)
        print(
            f"{name:<16}{megabytes / statistics.median(used.seconds for used in all_used):6.2f} MB/s  "
            f"{statistics.median(ratios):5.2f} of the tokenizer alone ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"by processor time {of_processor:.2f}"
        )
    return 0


def packaged_tokenizer():
    from stages.distillation.models import ModelSource, load_tokenizer
    from stages.tasks.packages import packaged_teacher

    return load_tokenizer(ModelSource(str(packaged_teacher())))


def tokenizer_alone(corpus: str) -> tuple[Used, float]:
    """What it takes for all texts, and their megabytes."""
    from stages.tasks.corpus import find_corpus
    from tests.corpora import documents

    backend, texts = packaged_tokenizer().backend_tokenizer, list(documents(find_corpus(corpus)))
    first, size, began, processor = 0, 0, time.perf_counter(), time.process_time()
    for i, text in enumerate(texts, start=1):
        size += len(text)
        if size >= 1_000_000 or i == len(texts):
            backend.encode_batch(texts[first:i], add_special_tokens=False)
            first, size = i, 0
    used = Used(time.perf_counter() - began, time.process_time() - processor)
    return used, sum(len(text.encode()) for text in texts) / 1e6


def run(corpus: str, directory: Path, processes: int, kill_after: float | None = None) -> Used:
    """Tokenize in a process of its own, whose imports do not count."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.tokenizing",
        corpus,
        "--run",
        str(directory),
        str(processes),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    process.stdout.readline()
    began = time.perf_counter()
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return Used(kill_after, 0.0)
    processor, memory = map(float, process.stdout.readlines()[-1].split())
    seconds = time.perf_counter() - began
    if process.wait():
        raise SystemExit("tokenizing failed")
    return Used(seconds, processor, memory)


def tokenize(corpus: str, directory: Path, processes: int) -> int:
    """What `run` starts."""
    import torch

    from stages.tasks.corpus import find_corpus
    from stages.training.cached_rows import corpus_rows
    from stages.training.options import Job
    from stages.training.stage import Stage

    tokenizer, run = packaged_tokenizer(), directory / "runs" / "r" / "general"
    run.mkdir(parents=True, exist_ok=True)
    inputs, job = {"corpus": find_corpus(corpus).entry}, Job(workers=processes)
    stage = Stage("general", "general", run, {}, inputs, "", job, torch.device("cpu"))
    print("ready", flush=True)
    began = time.process_time()
    corpus_rows(stage, tokenizer, LENGTH, 0)
    own, of_children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    processor = time.process_time() - began + of_children.ru_utime + of_children.ru_stime
    print(processor, max(own.ru_maxrss, of_children.ru_maxrss) / 1000)
    return 0


def digest(directory: Path) -> dict:
    """The hashes of the rows' files."""
    return json.loads(next(directory.glob("runs/.cache/rows-*/manifest.json")).read_text())["files"]


if __name__ == "__main__":
    sys.exit(main())
