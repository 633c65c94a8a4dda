"""Tasks through lm-eval: what the block stream scores is what lm-eval's own model scores on the same weights."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.engine.orders import config_of, order, save_model
from tests.support.task_rows import save_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from paredown.contracts.job import EvaluationSettings, Format, Progress, TaskSettings
from paredown.contracts.tasks import TASKS, TaskName
from paredown.contracts.work import EngineResult, Origin, TaskFiles, WorkOrder
from paredown.core.sources.rows import task_rows
from paredown.engine.errors import Drained, TaskUnfit
from paredown.engine.evaluation import task_files, task_models
from paredown.engine.evaluation.task_models import BlockStreamLM
from paredown.engine.evaluation.tasks import answers_of
from paredown.engine.run import run
from paredown.engine.weights import open_model

RTN = {"method": "rtn", "bits": 4, "group_size": 32}
NAMES: tuple[TaskName, ...] = get_args(TaskName)
ORIGIN = Origin(base_bytes=1000, pruned=False, baseline_required=False)
SCORED = tuple(name for name in NAMES if not TASKS[name].generates)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tasks") / "model", config_of("llama"), dtype=torch.float32)


def files(directory: Path, name: TaskName, count: int = 6, **settings: Any) -> TaskFiles:
    raw = save_rows(directory / f"{name}.raw.jsonl", name, count)
    rows = directory / f"{name}.jsonl"
    rows.write_bytes(task_rows(raw.read_bytes(), raw.name, name))
    fewshot = rows if settings.get("num_fewshot") else None
    if fewshot:
        settings["fewshot_source"] = f"file://{fewshot}"
    return TaskFiles(settings=TaskSettings(name=name, source=f"file://{rows}", **settings), rows=rows, fewshot=fewshot)


def real_files(directory: Path, name: TaskName, data: str) -> TaskFiles:
    root = os.environ.get("PARE_TEST_DATA")
    if not root:
        pytest.skip("PARE_TEST_DATA names no directory with real rows")
    source = Path(root) / data
    found = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    rows = directory / f"{name}.jsonl"
    rows.write_bytes(task_rows(b"\n".join(path.read_bytes() for path in found), found[0].name, name))
    return TaskFiles(settings=TaskSettings(name=name, source=f"file://{source}", limit=20), rows=rows)


def test_a_run_without_tasks_does_without_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("lm_eval.")] + [task_models.__name__]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    run(order(tmp_path, [RTN]), lambda _progress: None, lambda: False)


def stream_lm(model_dir: Path) -> BlockStreamLM:
    files = open_model(model_dir, None)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return BlockStreamLM(files, tokenizer, context=256, device=torch.device("cpu"), dtype=torch.float32)


def reference_lm(model_dir: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(model_dir), batch_size=1)


def carry_out(given: WorkOrder) -> EngineResult:
    return run(given, lambda _progress: None, lambda: False)


def task_order(root: Path, tasks: Sequence[TaskFiles], recipe: Any = (RTN,), **changes: Any) -> WorkOrder:
    evaluation = EvaluationSettings(
        samples=3, sequence_length=64, speed=False, tasks=tuple(task.settings for task in tasks)
    )
    return order(root, list(recipe), tasks=tasks, evaluation=evaluation, **changes)


@pytest.mark.parametrize("name", SCORED)
def test_the_block_stream_scores_as_lm_evals_own_model_does(name: TaskName, model_dir: Path, tmp_path: Path) -> None:
    tasks = [files(tmp_path, name, num_fewshot=2 if TASKS[name].shots else 0)]
    ours, theirs = (answers_of(lm, tasks)[name] for lm in (stream_lm(model_dir), reference_lm(model_dir)))
    assert ours.groups == theirs.groups
    assert ours.values.keys() == theirs.values.keys()
    assert set(task_files.metrics(name)) == {metric.partition(",")[0] for metric in ours.values}
    for metric, values in theirs.values.items():
        assert ours.values[metric] == pytest.approx(values, rel=1e-4, abs=1e-4), metric


@pytest.mark.parametrize(
    ("name", "data"), [("lambada", "lambada/first-half.jsonl"), ("blimp", "blimp"), ("crows_pairs", "crows_pairs.csv")]
)
def test_and_on_real_rows(name: TaskName, data: str, model_dir: Path, tmp_path: Path) -> None:
    tasks = [real_files(tmp_path, name, data)]
    ours, theirs = (answers_of(lm, tasks)[name] for lm in (stream_lm(model_dir), reference_lm(model_dir)))
    assert len(ours.values[TASKS[name].metric]) == 20
    assert len(set(ours.groups)) == {"lambada": 0, "blimp": 20, "crows_pairs": 9}[name]
    for metric, values in theirs.values.items():
        assert ours.values[metric] == pytest.approx(values, rel=1e-4, abs=1e-4), metric


def test_texts_as_a_whole_are_scored_in_windows(model_dir: Path) -> None:
    from lm_eval.api.instance import Instance

    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0, metadata=("x", 0, 1))
        for text in ("short", "a text that is longer than the model reads at once. " * 12)
    ]
    ours = stream_lm(model_dir).loglikelihood_rolling(requests)
    assert ours == pytest.approx(reference_lm(model_dir).loglikelihood_rolling(requests), rel=1e-4)


def test_several_passes_through_the_blocks_score_the_same(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [files(tmp_path, "hellaswag")]
    at_once = answers_of(stream_lm(model_dir), tasks)
    # Hidden states of 64 numbers of four bytes: two hundred tokens at once.
    monkeypatch.setattr(task_models, "TASK_STATES_BYTES", 200 * 64 * 4)
    assert (
        answers_of(stream_lm(model_dir), tasks)["hellaswag"].values["acc_norm"]
        == at_once["hellaswag"].values["acc_norm"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_definition_asks_what_lm_evals_own_asks(name: TaskName) -> None:
    from lm_eval import tasks as bundled
    from lm_eval.tasks._yaml_loader import load_yaml

    theirs = {
        "lambada": "lambada/lambada_openai",
        "blimp": "blimp/blimp_wh_island",
        "arc_easy": "arc/arc_easy",
        "arc_challenge": "arc/arc_challenge",
        "winogrande": "winogrande/default",
        "mmlu": "mmlu/default/mmlu_anatomy",
        "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1",
        "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2",
        "crows_pairs": "crows_pairs/crows_pairs_english",
    }.get(name, f"{name}/{name}")
    root = Path(bundled.__file__).parent
    path = root / f"{theirs}.yaml" if name != "blimp" else root / "blimp" / "wh_island.yaml"
    own = load_yaml(Path(task_files.__file__).parent / f"{name}.yaml")
    original = load_yaml(path)
    asked = (
        "output_type",
        "process_docs",
        "doc_to_text",
        "doc_to_target",
        "doc_to_choice",
        "process_results",
        "target_delimiter",
        "generation_kwargs",
        "filter_list",
    )
    for key in asked:
        mine, other = own.get(key), original.get(key)
        assert getattr(mine, "__name__", mine) == getattr(other, "__name__", other), key
    by_name = [sorted(task["metric_list"], key=lambda entry: entry["metric"]) for task in (own, original)]
    assert by_name[0] == by_name[1]


def test_a_report_has_each_task_on_base_and_artifact(tmp_path: Path) -> None:
    tasks = [files(tmp_path, "lambada", 40), files(tmp_path, "blimp", 40, limit=9)]
    given = task_order(tmp_path, tasks)
    lambada, blimp = carry_out(given).report.tasks
    assert (lambada.name, blimp.name) == ("lambada", "blimp")
    assert [metric.name for metric in lambada.metrics] == ["acc", "perplexity"]
    assert (lambada.rows, blimp.rows) == (40, 9)
    assert blimp.flipped is not None
    assert [group.name for group in blimp.groups] == ["agreement", "islands"]
    assert sum(group.rows for group in blimp.groups) == 9
    perplexity = lambada.metrics[1]
    assert perplexity.base is not None
    assert perplexity.difference == pytest.approx(perplexity.artifact - perplexity.base)
    assert perplexity.base != perplexity.artifact
    # Another limit is another protocol, and says so.
    assert lambada.protocol_hash != blimp.protocol_hash
    assert blimp.protocol.limit == 9
    assert blimp.protocol.harness.startswith("lm_eval 0.4")


def test_exported_files_give_the_reports_figures_in_lm_eval_itself(tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = [files(tmp_path, "lambada", 30), files(tmp_path, "crows_pairs", 30)]
    given = task_order(tmp_path, tasks, [{"method": "wanda", "sparsity": 0.3}], format=Format.SAFETENSORS)
    reported = {result.name: result for result in carry_out(given).report.tasks}
    exported = tmp_path / "exported"
    exported.mkdir()
    names = task_files.write(exported, tasks, cache_dir=tmp_path / "cache")
    manager = TaskManager(include_path=str(exported), include_defaults=False)
    found = simple_evaluate(reference_lm(given.output_dir), tasks=names, task_manager=manager, bootstrap_iters=0)
    for name, figures in (("lambada", ("acc", "perplexity")), ("crows_pairs", ("pct_stereotype", "likelihood_diff"))):
        own = {metric.name: metric for metric in reported[name].metrics}
        for figure in figures:
            theirs = found["results"][f"pare_{name}"]
            assert own[figure].artifact == pytest.approx(theirs[f"{figure},none"], rel=1e-4)


def test_what_a_model_writes_is_judged_as_lm_eval_judges_it(tmp_path: Path) -> None:
    config = config_of("llama")
    config.max_position_embeddings = 1024
    model_dir = save_model(tmp_path / "model", config)
    tasks = [files(tmp_path, "gsm8k", 3, num_fewshot=1)]
    # Of an artifact's artifact, so that one process is enough; the base is asked the same way (test_trust).
    [result] = carry_out(task_order(tmp_path, tasks, model_dir=model_dir, origin=ORIGIN)).report.tasks
    assert [metric.name for metric in result.metrics] == ["exact_match,strict-match", "exact_match,flexible-extract"]
    assert (result.rows, result.main.artifact) == (3, 0), "random weights solve nothing"
    assert result.protocol.num_fewshot == 1
    assert result.runtime.startswith("transformers ")


def test_a_resumed_run_does_not_ask_the_base_again(tmp_path: Path) -> None:
    given = task_order(tmp_path, [files(tmp_path, "blimp", 12)])
    messages: list[Progress] = []

    def stop_at_the_artifact() -> bool:
        return bool(messages) and messages[-1].message == "measuring tasks on the artifact"

    with pytest.raises(Drained):
        run(given, messages.append, stop_at_the_artifact)
    for path in given.output_dir.iterdir():
        path.unlink()
    messages.clear()
    [result] = run(given, messages.append, lambda: False).report.tasks
    asked = [message for message in messages if message.message == "measuring tasks on the base" and message.block]
    assert asked == []
    assert result.main.base is not None
    assert result.main.verdict is not None


def test_an_artifacts_artifact_is_measured_alone(tmp_path: Path) -> None:
    [result] = carry_out(task_order(tmp_path, [files(tmp_path, "blimp", 12)], origin=ORIGIN)).report.tasks
    assert (result.main.base, result.main.verdict, result.flipped) == (None, None, None)
    assert 0 <= result.main.artifact <= 1


def test_more_examples_than_there_are_rows_are_refused_before_any_work(tmp_path: Path) -> None:
    given = task_order(tmp_path, [files(tmp_path, "piqa", 4, num_fewshot=5)])
    with pytest.raises(TaskUnfit, match="wants 5 examples, and fewshot_source has 4 rows") as refused:
        carry_out(given)
    assert refused.value.field == "evaluation.tasks.0.num_fewshot"


def test_a_model_that_reads_too_little_to_write_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(TaskUnfit, match="reads and writes 257 tokens or more, and this one has room for 256"):
        carry_out(task_order(tmp_path, [files(tmp_path, "gsm8k", 2)]))
