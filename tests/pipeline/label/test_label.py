"""Labels asked of a server that breaks in the ways that servers do."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli.commands import main
from pipeline.label.answers import Answer, AnswerTable
from pipeline.label.endpoint import label_probabilities, named_label
from tests.pipeline.label.stub_server import Stub, serving

ROOT = Path(__file__).parents[3]
TEXTS = [f"a {'good' if i % 3 else 'dull'} film, number {i}" for i in range(24)]


@pytest.fixture
def stub():
    with serving() as server:
        yield server


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-key")
    write("texts.csv", TEXTS)
    return tmp_path


def write(name: str, texts: list[str]) -> None:
    Path(name).write_text("text\n" + "".join(f'"{text}"\n' for text in texts))


def arguments(stub: Stub, *more: str) -> list[str]:
    return ["label", "data=texts.csv", "labels=good,bad", "model=stub", f"base_url={stub.url}", *more]


def answers(name: str = "texts-answers.jsonl") -> dict[str, dict]:
    lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
    assert len({line["text"] for line in lines}) == len(lines)
    return {line["text"]: line for line in lines}


def test_each_text_is_asked_once_whatever_the_server_does(stub, place, capsys):
    faults = {0: "429", 4: "500", 8: "broken", 12: "slow", 16: "429", 20: "500"}
    stub.fault = lambda text, before: faults.get(int(text.split()[-1]), "") if before < 2 else ""
    write("texts.csv", [*TEXTS, TEXTS[3].upper()])  # the same but for case
    assert main(arguments(stub)) == 0
    assert set(stub.asked.values()) == {1} and len(stub.asked) == len(TEXTS)
    found = answers()
    assert {text: line["label"] for text, line in found.items()} == {
        text: "good" if "good" in text else "bad" for text in TEXTS
    }
    told = capsys.readouterr()
    assert "25 rows, 24 distinct texts: 0 are answered" in told.out and "240 tokens now" in told.out
    assert stub.keys == {"Bearer a-secret-key"}
    assert "a-secret-key" not in told.out + told.err + Path("texts-answers.jsonl").read_text()
    assert main(arguments(stub)) == 0
    assert len(stub.asked) == sum(stub.asked.values()) and "24 are answered" in capsys.readouterr().out
    write("texts.csv", [*TEXTS, "one more good film 24"])
    assert main(arguments(stub)) == 0
    assert sum(stub.asked.values()) == len(TEXTS) + 1 == len(answers())


def test_killed_twice_it_goes_on_and_asks_again_only_what_was_under_way(stub, place):
    stub.fault = lambda text, before: "slow"
    command = [sys.executable, "-m", "pipeline", *arguments(stub, "concurrency=3")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for wanted in (5, 14):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        begun = time.monotonic()
        while not Path("texts-answers.jsonl").exists() or len(answers_so_far()) < wanted:
            assert process.poll() is None and time.monotonic() - begun < 60
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with open("texts-answers.jsonl", "ab") as file:
        file.write(b'{"text": "torn')
    stub.fault = lambda text, before: ""
    assert main(arguments(stub)) == 0
    assert answers().keys() == set(TEXTS)
    assert sum(stub.asked.values()) <= len(TEXTS) + 2 * 3


def answers_so_far() -> list[str]:
    return Path("texts-answers.jsonl").read_text().splitlines()


def test_ctrl_c_says_what_is_left(stub, place):
    stub.fault = lambda text, before: "slow"
    command = [sys.executable, "-m", "pipeline", *arguments(stub, "concurrency=2")]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not Path("texts-answers.jsonl").exists() or len(answers_so_far()) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "run the same command again to go on" in output, output
    assert "Traceback" not in output


def test_a_spent_budget_loses_nothing(stub, place, capsys):
    assert main(arguments(stub, "max_requests=10", "concurrency=1", "logprobs=false")) == 1
    assert len(answers()) == 10 == stub.requests
    assert "14 texts are left, because the budget is used up" in capsys.readouterr().out
    assert main(arguments(stub, "max_tokens=50", "concurrency=1", "logprobs=false")) == 1
    assert len(answers()) == 15
    assert main(arguments(stub, "logprobs=false")) == 0
    assert len(answers()) == 24 == stub.requests


def test_nonsense_is_asked_twice_kept_and_counted(stub, place, capsys):
    stub.answer = lambda text: "I think it is good, not bad" if text.endswith(" 5") else "Good."
    assert main(arguments(stub, "logprobs=false")) == 0
    found = answers()[TEXTS[5]]
    assert found["label"] is None and found["answers"] == ["I think it is good, not bad"] * 2
    assert stub.asked[TEXTS[5]] == 2 and sum(stub.asked.values()) == 25
    assert "(not understood)" in capsys.readouterr().out


def test_samples_become_a_distribution(stub, place):
    draw = random.Random(1)
    stub.answer = lambda text: draw.choice(["good", "Good!", "bad"])
    assert main(arguments(stub, "samples=9")) == 0
    for line in answers().values():
        p = line["probabilities"]
        assert sum(p.values()) == pytest.approx(1) and set(p) == {"good", "bad"}
        assert p[line["label"]] == max(p.values()) and round(9 * p["good"], 6) % 1 == pytest.approx(
            0, abs=1e-5
        )


def test_probabilities_of_the_first_token_where_the_server_gives_them(stub, place):
    stub.logprobs = lambda text: {"good": 0.6, "Bad": 0.2, "The": 0.1}
    stub.answer = lambda text: "good"
    assert main(arguments(stub)) == 0
    assert answers()[TEXTS[0]]["probabilities"] == {"good": 0.75, "bad": 0.25}
    assert sum(stub.asked.values()) == len(TEXTS)


def test_a_token_that_begins_no_label_gives_no_probabilities(stub, place):
    stub.logprobs = lambda text: {"The": 0.9, "bad": 1e-5, "good": 1e-6}
    stub.answer = lambda text: "The label is good"
    assert main(arguments(stub)) == 0
    assert all(line["label"] == "good" and "probabilities" not in line for line in answers().values())


def test_what_a_model_thinks_aloud_is_not_its_answer(stub, place):
    stub.answer = lambda text: "<think>\nIs it good or bad?\n</think>\n\ngood"
    assert main(arguments(stub, "logprobs=false")) == 0
    assert {line["label"] for line in answers().values()} == {"good"} and stub.requests == len(TEXTS)


def test_a_server_of_one_answer_a_request_is_asked_for_each_sample(stub, place):
    stub.one_choice = True
    draw = random.Random(1)
    stub.answer = lambda text: draw.choice(["good", "bad"])
    assert main(arguments(stub, "samples=5")) == 0
    assert set(stub.asked.values()) == {5}
    assert all(round(5 * line["probabilities"]["good"], 6) % 1 == 0 for line in answers().values())


@pytest.mark.parametrize(
    ("refused", "more", "said"),
    [
        (("logprobs", "temperature"), (), "stub takes no temperature"),
        (("n",), ("samples=3",), "stub gives one answer a request"),
        (("temperature",), ("samples=3",), "stub takes no temperature"),
    ],
)
def test_what_a_server_refuses_is_left_out_and_told(stub, place, capsys, refused, more, said):
    """As reasoning models refuse a temperature, and some servers several answers."""
    stub.refused, stub.logprobs = refused, lambda text: {"good": 1.0}
    assert main(arguments(stub, "concurrency=1", *more)) == 0
    samples = 3 if "n" in refused else 1
    assert set(stub.asked.values()) == {samples} and len(answers()) == len(TEXTS)
    assert stub.requests == samples * len(TEXTS) + len(refused), "once, not for each text"
    assert said in capsys.readouterr().out


def test_a_text_that_is_refused_alone_takes_nothing_from_the_others(stub, place):
    stub.fault = lambda text, before: "400" if text == TEXTS[3] else ""
    stub.logprobs = lambda text: {"good": 0.6, "bad": 0.4}
    assert main(arguments(stub)) == 1
    assert len(answers()) == len(TEXTS) - 1 and all("probabilities" in line for line in answers().values())


def test_two_commands_do_not_write_one_file(stub, place, capsys):
    table = AnswerTable(Path("texts-answers.jsonl"), ["good", "bad"], "llm")
    table.append(Answer(TEXTS[0], None, "good", None, None, 1))
    assert main(arguments(stub)) == 2
    assert "to: texts-answers.jsonl is in use by another command: wait" in capsys.readouterr().err
    assert not stub.requests and len(answers()) == 1


def test_the_answers_of_two_models_are_not_mixed(stub, place, capsys):
    assert main(arguments(stub)) == 0
    assert {line["model"] for line in answers().values()} == {"stub"}
    assert main(arguments(stub, "model=another")) == 2
    assert "texts-answers.jsonl, line 1: was answered by 'stub', not by 'another'" in capsys.readouterr().err


def test_a_prompt_of_ones_own_for_pairs(stub, place):
    Path("pairs.csv").write_text("one,two\nbraces {text_b},then {text}\n")
    Path("prompt.txt").write_text("{labels}? {text} / {text_b} Text: x")
    pairs = ["data=pairs.csv", "text_columns=one,two", "prompt=prompt.txt", "task=pairs", "logprobs=false"]
    assert main(arguments(stub, *pairs)) == 0
    assert stub.prompts == ["good, bad? braces {text_b} / then {text} Text: x"]
    [line] = answers("pairs-answers.jsonl").values()
    assert (line["text"], line["text_b"]) == ("braces {text_b}", "then {text}")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["data=none.csv"], ["data: none.csv: no such file"]),
        (["model="], ["model= is missing"]),
        (["labels=good"], ["labels: good: give two labels or more"]),
        (["labels=good,Good"], ["labels: ", "would not be understood"]),
        (["text_columns=review"], ["texts.csv, line 2: no column 'review' (there are 'text')"]),
        (["base_url=", "model=x"], ["base_url: none: give the address of a server"]),
        (["prompt=bare.txt"], ["prompt: bare.txt has no {text}"]),
        (["prompt=bad.txt"], ["prompt: bad.txt does not name the label 'bad'; put it in, or {labels}"]),
        (["to=texts.csv"], ["to: texts.csv: answers are written to a .jsonl file"]),
        (["to=other.jsonl"], ["to: other.jsonl, line 1: has the label 'joy', labels= has good, bad"]),
        (["to=broken.jsonl"], ["to: broken.jsonl, line 1: "]),
    ],
    ids=lambda value: value[0],
)
def test_bad_input_is_one_clear_line(stub, place, capsys, monkeypatch, more, words):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    Path("bare.txt").write_text("what is it?")
    Path("bad.txt").write_text("Is it Good? Text: {text}")
    Path("other.jsonl").write_text('{"text": "a", "label": "joy"}\n')
    Path("broken.jsonl").write_text("[1]\n")
    assert main(arguments(stub, *more)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert not stub.requests


@pytest.mark.parametrize("fault", ["401", "400", "500"])
def test_a_server_that_refuses_everything_ends_it_with_one_line(stub, place, capsys, fault):
    stub.fault = lambda text, before: fault
    assert main(arguments(stub, "retries=1", "concurrency=2")) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1 and f"answered {fault} (" in error[0] and "OPENAI_API_KEY" in error[0]
    assert stub.requests < 20


@pytest.mark.parametrize("fault", ["page", "torn", "empty"])
def test_what_is_no_chat_completion_is_a_failure_with_one_line(stub, place, capsys, fault):
    stub.fault = lambda text, before: fault
    assert main(arguments(stub, "retries=0", "concurrency=2")) == 2
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "answered, but not in OpenAI's chat protocol (" in error and "mostly ends with /v1" in error


def test_why_single_texts_have_no_answer_is_shown(stub, place, capsys):
    stub.fault = lambda text, before: "page" if text == TEXTS[0] else ""
    assert main(arguments(stub, "retries=0")) == 1
    shown = capsys.readouterr().out
    assert "1 texts are left, because requests failed (the last one: without choices: '<html>" in shown


def test_a_server_that_is_not_there_ends_it_with_one_line(place, capsys):
    start = time.monotonic()
    assert main(["label", "data=texts.csv", "labels=a,b", "model=x", "base_url=http://127.0.0.1:9/v1"]) == 2
    assert time.monotonic() - start < 10, "it is not tried again and again"
    told = capsys.readouterr()
    assert (
        "http://127.0.0.1:9/v1 did not answer (Connection error. All connection attempts failed)" in told.err
    )
    assert "check base_url=, and that a server runs there" in told.err and "label " not in told.out


def test_a_text_with_line_ends_of_unicode_is_read_again(tmp_path):
    table, labels = tmp_path / "answers.jsonl", ["dull", "good"]
    for text in ("one\u2028two", "three\x85four"):
        AnswerTable(table, labels, "llm").append(Answer(text, None, "good", None, None, 1))
    assert AnswerTable(table, labels, "llm").counts() == {"good": 2}


def test_a_thought_that_has_not_come_to_an_end_is_no_answer():
    assert named_label("<think> it is good, surely", ["good", "bad"]) is None
    assert named_label("<think> good? </think> bad", ["good", "bad"]) == "bad"


def test_labels_are_named_as_whole_words_the_longest_first():
    assert named_label("no show", ["no", "no show"]) == "no show"
    assert named_label("No.", ["no", "no show"]) == "no"
    assert named_label("nothing", ["no", "yes"]) is None
    assert named_label("2", ["1", "2", "12"]) == "2"
    assert label_probabilities({"n": -1.0}, ["no", "never"]) is None
    assert label_probabilities({"The": -1.0}, ["no", "yes"]) is None
