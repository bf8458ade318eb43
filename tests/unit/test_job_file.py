"""Job files: what is read from them, and what their author is told."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import JobError
from orchestrator.job.file import load_job

SOUND = "name: a\ntask: language_modelling\ndata: {source: python-stdlib}\n"

A_TASK = """\
from orchestrator.tasks.task import Metric
from orchestrator.tasks.language_modelling import LanguageModelling

class MyTask(LanguageModelling):
    metric = Metric("loss", "min")

class NotATask:
    pass
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that places read `job.yaml:1:1`


def write(text: str | bytes, name: str = "job.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def problems(text: str | bytes, *overrides: str) -> list[str]:
    with pytest.raises(JobError) as caught:
        load_job(write(text), overrides)
    assert caught.value.problems
    return caught.value.problems


def only_problem(text: str | bytes, *overrides: str) -> str:
    (problem,) = problems(text, *overrides)
    assert len(problem.splitlines()) == 1
    return problem


# What is read


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("job.yaml", "job"),
        ("jobs/my reviews (2).yaml", "my-reviews-2-"),
        ("..hidden.v2.yml", "hidden.v2"),
        (f"{'n' * 150}.yaml", "n" * 100),
    ],
)
def test_a_job_without_a_name_has_its_files(file: str, name: str) -> None:
    assert load_job(write(SOUND.replace("name: a\n", ""), file)).name == name
    assert load_job(write(SOUND, file)).name == "a"
    assert load_job(write(SOUND, file), ["name=b"]).name == "b"


def test_a_job_upon_another_has_the_name_of_its_own_file() -> None:
    nameless = SOUND.replace("name: a\n", "")
    write(nameless, "below.yaml")
    assert load_job(write("base: below.yaml\n", "above.yaml")).name == "above"
    write(SOUND, "below.yaml")
    assert load_job("above.yaml").name == "a"  # which it inherits


def test_a_file_whose_name_is_none_for_a_job_needs_one() -> None:
    with pytest.raises(JobError, match="name: is missing"):
        load_job(write(SOUND.replace("name: a\n", ""), "（一）.yaml"))


def test_an_empty_name_is_not_taken_for_none() -> None:
    assert "name = null" in only_problem(SOUND.replace("name: a", "name:"))


def test_values_of_the_file_are_read_and_the_others_have_defaults() -> None:
    job = load_job(write(SOUND + "train: {lr: 0.5, betas: [0.8, 0.9]}\n"))
    assert (job.name, job.train.lr, job.train.betas) == ("a", 0.5, (0.8, 0.9))
    assert job.train.steps is None


@pytest.mark.parametrize(
    ("written", "read"),
    [("1e-3", 0.001), ("1E-3", 0.001), ("+.5", 0.5), ("2.", 2.0), ("3", 3.0), ("1.5e+2", 150.0)],
)
def test_numbers_may_be_written_in_every_usual_way(written: str, read: float) -> None:
    assert load_job(write(SOUND + f"train: {{lr: {written}}}\n")).train.lr == read
    assert load_job(write(SOUND), [f"train.lr={written}"]).train.lr == read


def test_a_leading_zero_does_not_make_a_number_octal() -> None:
    assert load_job(write(SOUND + "train: {steps: 010}\n")).train.steps == 10


def test_words_and_dates_stay_text() -> None:
    text = SOUND.replace("name: a", "name: no")
    text += "storage: on\nserve: {sample_prompt: y, host: 2024-01-01, open: true}\n"
    job = load_job(write(text))
    assert (job.name, job.storage) == ("no", "on")
    assert (job.serve.sample_prompt, job.serve.host) == ("y", "2024-01-01")


def test_a_byte_order_mark_and_windows_line_ends_are_no_content() -> None:
    text = SOUND.replace("\n", "\r\n").encode("utf-8-sig")
    assert load_job(write(text)).name == "a"


# Base files


def test_a_job_extends_its_base_section_by_section() -> None:
    write(SOUND + "train: {lr: 0.5, steps: 7}\nstorage: below\n", "base.yaml")
    job = load_job(write("base: base.yaml\nname: b\ntrain: {lr: 0.25, steps: null}\n"))
    assert (job.name, job.task, job.storage) == ("b", "language_modelling", "below")
    assert (job.train.lr, job.train.steps) == (0.25, None)


def test_lists_of_a_base_are_replaced_not_joined() -> None:
    write(SOUND.replace("python-stdlib", "[a, b, c]"), "base.yaml")
    assert load_job(write("base: base.yaml\ndata: {source: [d]}\n")).data.source == ["d"]


def test_a_base_may_have_a_base_and_is_found_beside_the_file_that_names_it() -> None:
    write(SOUND + "train: {lr: 0.5, seed: 1}\n", "shared/far/first.yaml")
    write("base: far/first.yaml\ntrain: {seed: 2, warmup_steps: 9}\n", "shared/second.yaml")
    train = load_job(write("base: shared/second.yaml\ntrain: {warmup_steps: 3}\n")).train
    assert (train.lr, train.seed, train.warmup_steps) == (0.5, 2, 3)


def test_a_cycle_of_base_files_is_refused() -> None:
    write("base: job.yaml\n", "other.yaml")
    assert "its own base" in only_problem("base: other.yaml\n")
    assert "its own base" in only_problem("base: job.yaml\n")


def test_a_missing_base_is_named_where_it_is_asked_for() -> None:
    problem = only_problem(SOUND + "base: nowhere.yaml\n")
    assert problem.startswith("job.yaml:4:1: base")
    assert "nowhere.yaml" in problem


@pytest.mark.parametrize("base", ["3", "[a.yaml]", "{a: b}", "''"])
def test_a_base_that_is_no_file_name_is_refused(base: str) -> None:
    assert only_problem(SOUND + f"base: {base}\n").startswith("job.yaml:4:1: base")


def test_a_mistake_in_a_base_is_placed_in_the_base() -> None:
    write(SOUND + "train:\n  lrr: 1\n", "base.yaml")
    assert only_problem("base: base.yaml\ntrain: {lr: 1}\n").startswith("base.yaml:5:3: train.lrr")


def test_a_mistake_in_a_base_that_the_job_mends_is_none() -> None:
    write(SOUND + "train: {lr: -1}\n", "base.yaml")
    assert load_job(write("base: base.yaml\ntrain: {lr: 1}\n")).train.lr == 1


def test_a_base_that_is_no_yaml_is_named() -> None:
    write("name: [\n", "base.yaml")
    assert only_problem("base: base.yaml\n").startswith("base.yaml:")


# Overrides from the command line


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.lr=1e-3", "train", "lr", 0.001),
        ("train.steps=1e3", "train", "steps", 1000),
        ("train.minutes=null", "train", "minutes", None),
        ("data.source=[a, b]", "data", "source", ["a", "b"]),
        ("serve.sample_prompt=a = b", "serve", "sample_prompt", "a = b"),
        ("train.betas=[0.5, 0.75]", "train", "betas", (0.5, 0.75)),
    ],
)
def test_an_override_takes_the_place_of_the_value_in_the_file(
    override: str, section: str, key: str, value: Any
) -> None:
    job = load_job(write(SOUND + "train: {minutes: 2}\n"), [override, "train.minutes=null"])
    assert getattr(getattr(job, section), key) == value


def test_the_last_of_two_overrides_counts() -> None:
    assert load_job(write(SOUND), ["train.lr=1", "train.lr=2"]).train.lr == 2


@pytest.mark.parametrize(
    "override",
    ["tune.space.train.lr={choice: [0.5]}", "tune.space={train.lr: {choice: [0.5]}}"],
)
def test_an_override_reaches_the_dotted_keys_of_the_sweep(override: str) -> None:
    tune = load_job(write(SOUND), [override]).tune
    assert tune is not None
    assert tune.space["train.lr"].choice == [0.5]


def test_an_override_can_take_the_sweep_out() -> None:
    text = SOUND + "tune: {space: {train.lr: {choice: [0.5]}}}\n"
    assert load_job(write(text), ["tune=null"]).tune is None


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.lr=-1", "train.lr"),
        ("train.lr=", "train.lr"),
        ("train.lrr=1", "train.lrr"),
        ("train=3", "train"),
        ("trane.lr=1", "trane"),
        ("name.x=3", "name"),
    ],
)
def test_a_wrong_override_is_placed_on_the_command_line(override: str, key: str) -> None:
    assert only_problem(SOUND, override).startswith(f"command line: {key}")


@pytest.mark.parametrize(
    "override",
    [
        "train.lr",
        "=3",
        "train.lr=[",
        "train.lr=*x",
        "train.lr=@",
        "train.lr=a: b: c",
        "train.lr=!mine 3",
        "train.lr=!!int abc",
        "train.lr=!!python/name:os.system",
        "train.steps=" + "9" * 5000,
    ],
)
def test_an_override_with_bad_syntax_is_quoted_in_one_line(override: str) -> None:
    problem = only_problem(SOUND, override)
    assert problem.startswith("command line: ")
    assert override[:8] in problem


def test_the_base_cannot_be_overridden_and_the_advice_is_not_to_try_it_again() -> None:
    assert "did you mean base" not in only_problem(SOUND, "base=other.yaml")


# What is told


def test_every_problem_of_a_file_is_told_at_once() -> None:
    text = """\
name: a/b
task: nothing
datas: {source: x}
train:
  lr: -1
  stepz: 3
model: {num_heads: 7, dropout: 2}
cluster:
  workers: 0
  workers: 1
"""
    assert {" ".join(problem.split()[:2]).rstrip(":") for problem in problems(text)} == {
        "job.yaml:1:1: name",
        "job.yaml:2:1: task",
        "job.yaml:3:1: datas",
        "job.yaml: data",
        "job.yaml:5:3: train.lr",
        "job.yaml:6:3: train.stepz",
        "job.yaml:7:23: model.dropout",
        "job.yaml:9:3: cluster.workers",
        "job.yaml:10:3: cluster.workers",
    }


def test_an_unknown_key_brings_the_one_that_was_meant() -> None:
    assert "did you mean steps?" in only_problem(SOUND + "train: {stepz: 3}\n")
    assert "did you mean train?" in only_problem(SOUND + "trian: {steps: 3}\n")
    assert "did you mean name?" in only_problem(SOUND + "Name: b\n")
    text = SOUND + "tune: {space: {train.lr: {choise: [1]}}}\n"
    assert "did you mean choice?" in only_problem(text)


def test_a_key_like_none_brings_those_that_there_are() -> None:
    problem = only_problem(SOUND + "cluster: {zzz: 3}\n")
    assert "workers" in problem
    assert "did you mean" not in problem


def test_a_missing_key_is_named() -> None:
    found = problems("name: a\n")
    assert [problem.split(": ")[1] for problem in found] == ["task", "data"]


@pytest.mark.parametrize("lr", [".nan", "nan", ".inf", "-.inf", "1e400", "-1", "0", "fast", "null"])
def test_a_learning_rate_that_is_no_positive_number_is_refused(lr: str) -> None:
    assert only_problem(SOUND + f"train: {{lr: {lr}}}\n").startswith("job.yaml:4:9: train.lr = ")


@pytest.mark.parametrize("truth", ["true", "false", "yes", "no", "on"])
def test_a_truth_value_is_no_number(truth: str) -> None:
    problem = only_problem(SOUND + f"cluster: {{workers: {truth}}}\n")
    assert problem.startswith("job.yaml:4:11: cluster.workers")


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("train: {steps: 1.5}", "train.steps"),
        ("train: {steps: 1, minutes: 1}", "train"),
        ("train: {betas: [0.9, 5]}", "train.betas"),
        ("train: {seed: 99999999999999999999999}", "train.seed"),
        ("train: []", "train"),
        ("model: {d_model: 10, num_heads: 3}", "model"),
        ("model: {dropout: .nan}", "model.dropout"),
        ("cluster: {gpus_per_worker: .nan}", "cluster.gpus_per_worker"),
        ("serve: {port: 65536}", "serve.port"),
        ("storage: 3", "storage"),
    ],
)
def test_a_value_out_of_its_range_is_refused_by_name(section: str, key: str) -> None:
    assert problems(SOUND + section + "\n")[0].split(": ")[1].split(" ")[0].startswith(key)


@pytest.mark.parametrize("source", ["[]", "''", "null", "3", "[3]"])
def test_no_source_at_all_is_refused(source: str) -> None:
    assert "data.source" in only_problem(SOUND.replace("python-stdlib", source))


def test_a_value_of_several_lines_still_makes_one_line() -> None:
    only_problem(SOUND + 'train: {lr: "a\\nb"}\n')


def test_a_huge_value_is_not_repeated_whole() -> None:
    assert len(only_problem(SOUND + f"train: {{lr: {'a' * 50_000}}}\n")) < 1000


def test_a_batch_that_cannot_be_dealt_evenly_is_refused() -> None:
    text = SOUND + "train: {global_batch_size: 10}\ncluster: {workers: 3}\n"
    problem = only_problem(text)
    assert problem.startswith("job.yaml:4:9: train.global_batch_size = 10")
    assert "cluster.workers = 3" in problem
    assert load_job(write(text), ["cluster.workers=5"]).cluster.workers == 5


# What is no job file at all


def test_a_key_that_stands_twice_is_refused() -> None:
    found = problems(SOUND + "name: b\ntrain:\n  lr: 1\n  lr: 2\n")
    assert [" ".join(problem.split()[:2]) for problem in found] == [
        "job.yaml:4:1: name:",
        "job.yaml:7:3: train.lr:",
    ]


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [touch was-here]",
        "!!python/name:os.system",
        "!!timestamp 2024-01-01",
        "!!binary aGk=",
        "!mine 3",
        "!!int abc",
        "!!bool abc",
        "!!float 3",
    ],
)
def test_tags_are_refused_where_they_stand(value: str) -> None:
    problem = problems(SOUND + f"train:\n  lr: {value}\n")[0]
    assert problem.startswith("job.yaml:5:")
    assert "tag" in problem
    assert not Path("was-here").exists()


def test_a_tag_brings_no_second_problem() -> None:
    only_problem(SOUND + "train: {lr: !mine 3}\n")


def test_aliases_are_refused_where_they_stand() -> None:
    assert only_problem("name: &x a\ntask: *x\n").startswith("job.yaml:2:7: ")


def test_an_alias_bomb_is_refused_within_a_second() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = [f"a: &a [{', '.join(['x'] * 9)}]"]
    for below, letter in itertools.pairwise(letters):
        lines.append(f"{letter}: &{letter} [{', '.join([f'*{below}'] * 9)}]")
    started = time.monotonic()
    assert only_problem("\n".join(lines)).startswith("job.yaml:2:")
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_ten_thousand_levels_are_refused_within_a_second(opening: str) -> None:
    started = time.monotonic()
    assert only_problem("name: a\nx:\n  " + opening * 10_000).startswith("job.yaml")
    assert time.monotonic() - started < 1


def test_ten_thousand_levels_on_the_command_line_are_refused_within_a_second() -> None:
    started = time.monotonic()
    assert len(only_problem(SOUND, "train.lr=" + "[" * 10_000)) < 1000
    assert time.monotonic() - started < 1


def test_hundreds_of_unknown_keys_are_told_within_a_second() -> None:
    text = SOUND + "".join(f"key{i}: 1\n" for i in range(500))
    started = time.monotonic()
    assert len(problems(text)) == 500
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("text", ["", "# nothing\n", "- name: a\n", "hello\n", "3\n", "null\n"])
def test_a_file_without_keys_is_refused(text: str) -> None:
    assert only_problem(text).startswith("job.yaml")


@pytest.mark.parametrize("text", [b"name: \xff\xfe", SOUND.encode("utf-16-le"), b"name: a\0b"])
def test_a_file_that_is_no_utf_8_text_is_refused(text: bytes) -> None:
    assert only_problem(text).startswith("job.yaml")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name: a: b\n", "job.yaml:1:8"),
        ("name: a\n\ttask: b\n", "job.yaml:2:1"),
        ("name: [a\n", "job.yaml:2:1"),
        (SOUND + "---\nname: b\n", "job.yaml:4:1"),
    ],
)
def test_broken_yaml_is_refused_where_it_breaks(text: str, place: str) -> None:
    assert only_problem(text).startswith(f"{place}: ")


def test_an_integer_of_thousands_of_digits_is_refused() -> None:
    problem = only_problem(SOUND + f"train: {{steps: {'9' * 5000}}}\n")
    assert problem.startswith("job.yaml:4:")
    assert len(problem) < 1000


def test_a_huge_file_is_refused_within_a_second() -> None:
    started = time.monotonic()
    assert only_problem(SOUND + "#" * (2 << 20)).startswith("job.yaml: ")
    assert time.monotonic() - started < 1


def test_a_missing_file_and_a_folder_are_refused() -> None:
    Path("folder").mkdir()
    for name in ("nowhere.yaml", "folder"):
        with pytest.raises(JobError) as caught:
            load_job(name)
        assert [problem.split(":")[0] for problem in caught.value.problems] == [name]


# The sweep


def space(text: str) -> str:
    return SOUND + f"cluster: {{workers: 2}}\ntune:\n  space: {{{text}}}\n"


@pytest.mark.parametrize(
    "text",
    [
        "train.lr: {loguniform: [1e-4, 1e-2]}",
        "train.lr: {uniform: [0.1, 0.2]}",
        "train.warmup_steps: {randint: [0, 10]}",
        "train.optimizer: {choice: [adamw, muon]}",
        "train.betas: {choice: [[0.9, 0.95], [0.8, 0.9]]}",
        "model.d_ff: {choice: [null, 64]}",
    ],
)
def test_every_kind_of_domain_is_accepted(text: str) -> None:
    tune = load_job(write(space(text))).tune
    assert tune is not None
    assert list(tune.space) == [text.split(":")[0]]


@pytest.mark.parametrize(
    "text",
    [
        "train.lrr: {choice: [1]}",
        "lr: {choice: [1]}",
        "cluster.workers: {choice: [1]}",
        "train.steps: {choice: [3]}",
        "train.minutes: {choice: [3]}",
        "train.seed: {choice: [3]}",
        "model.max_seq_len: {choice: [64]}",
        "train.: {choice: [3]}",
    ],
)
def test_a_key_that_cannot_be_swept_is_refused(text: str) -> None:
    problem = only_problem(space(text))
    assert problem.startswith(f"job.yaml:6:11: tune.space.{text.split(':')[0]}: ")


@pytest.mark.parametrize(
    "domain",
    [
        "{}",
        "[1, 2]",
        "3",
        "{choise: [1]}",
        "{choice: []}",
        "{choice: null}",
        "{choice: [1], uniform: [1, 2]}",
        "{uniform: [2, 1]}",
        "{uniform: [1]}",
        "{uniform: [1, .inf]}",
        "{loguniform: [0, 1]}",
        "{loguniform: [a, b]}",
        "{randint: [1, 1]}",
        "{randint: [1.5, 3]}",
    ],
)
def test_a_domain_that_is_none_is_refused(domain: str) -> None:
    for problem in problems(space(f"train.lr: {domain}")):
        assert problem.startswith("job.yaml:6:")
        assert ": tune.space.train.lr" in problem


@pytest.mark.parametrize(
    "text",
    [
        "train.lr: {choice: [0.1, -1]}",
        "train.lr: {choice: [.nan]}",
        "train.lr: {uniform: [0, 1]}",
        "train.optimizer: {choice: [adamw, sgd]}",
        "train.warmup_steps: {uniform: [1.5, 3.5]}",
        "train.warmup_steps: {uniform: [10, 50]}",
        "model.num_heads: {choice: [5]}",
        "model.num_heads: {randint: [2, 9]}",
        "train.global_batch_size: {choice: [31]}",
    ],
)
def test_a_domain_with_a_value_that_its_key_cannot_have_is_refused(text: str) -> None:
    assert f"tune.space.{text.split(':')[0]}: " in only_problem(space(text))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{trials: 2, scheduler: pbt}", "4:8: tune.trials = 2: pbt needs"),
        ("{search: grid}", "4:8: tune.search = grid: every key"),
        (
            "{space: {train.lr: {choice: [1.0], when: {train.x: 1}}}}",
            "4:16: tune.space.train.lr.when",
        ),
    ],
)
def test_what_a_sweep_cannot_do_together_is_told_with_its_place(text: str, problem: str) -> None:
    assert problem in only_problem(SOUND + f"tune: {text}\n")


# Tasks


@pytest.mark.parametrize("task", ["nothing", "Language_modelling", "''", "':'", "json", "'json:'"])
def test_an_unknown_task_brings_those_that_there_are(task: str) -> None:
    problem = only_problem(SOUND.replace("language_modelling", task))
    assert problem.startswith("job.yaml:2:1: task = ")
    assert "language_modelling" in problem


def test_a_task_may_be_named_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(A_TASK, "lib/job_file_task.py")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    job = load_job(write(SOUND.replace("language_modelling", "job_file_task:MyTask")))
    task = job.build_task()
    assert type(task).__name__ == "MyTask"
    assert task.columns == {"text": "text"}


@pytest.mark.parametrize(
    "task",
    [
        "no_such_module:MyTask",
        "json.nothing:MyTask",
        "json:MyTask",
        "json:dumps",
        "collections:OrderedDict",
        "a:b:c",
        ".relative:MyTask",
        "orchestrator.tasks.task:Task",
        "broken_task:MyTask",
        "failing_task:MyTask",
        "importing_task:MyTask",
        "good_task:NotATask",
    ],
)
def test_an_import_path_that_leads_to_no_task_is_refused(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("def (:\n", "lib/broken_task.py")
    write("1 / 0\n", "lib/failing_task.py")
    write("import no_such_module\n", "lib/importing_task.py")
    write(A_TASK, "lib/good_task.py")
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    problem = only_problem(SOUND.replace("language_modelling", f"'{task}'"))
    assert problem.startswith(f"job.yaml:2:1: task = {task}: ")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("task=text_clasification", "text_classification"),
        ("task=Translation", "translation"),
        ("task=lm", None),
        ("train.optimizer=adamW", "adamw"),
        ("train.precision=fp16", "bf16"),
        ("train.precision=int4", None),
        ("data.format=jsonlines", "jsonl"),
        ("model.size=Larg", "large"),
        ("model.activation=glu", "gelu"),
        ("tune={scheduler: hasha, trials: 2}", "asha"),
        ("tokenizer.kind=BPE", "bpe"),
    ],
)
def test_a_word_that_is_nearly_one_of_a_few_is_told_which(override: str, meant: str | None) -> None:
    problem = only_problem(SOUND, override)
    assert problem.count("did you mean") == (meant is not None)
    if meant is not None:
        assert f"did you mean {meant}?" in problem
