"""Divergence of an artifact from its base: against transformers' own logits, and as a report shows it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import CPU
from tests.engine.orders import order
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from paredown.contracts.job import Progress
from paredown.contracts.report import Divergence, Report
from paredown.engine.errors import Drained
from paredown.engine.evaluation.divergence import Comparison, StatesFile, has_states, kl_divergence
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.run import run
from paredown.engine.weights import ModelFiles, open_model

RTN = {"method": "rtn", "bits": 3, "group_size": 32}


class Letters:
    """A tokenizer whose tokens are their numbers."""

    def decode(self, tokens: list[int], **_options: Any) -> str:
        return " ".join(map(str, tokens))


def measure(base: ModelFiles, artifact: ModelFiles, tokens_NT: Tensor, work: Path, dtype: torch.dtype) -> Divergence:
    path = work / "states.npy"
    with StatesFile(path, tokens_NT[:, 1:].numel()) as written:
        perplexity(base, tokens_NT, device=CPU, dtype=dtype, observe=written)
        written.finish()
    with Comparison(base, path, device=CPU, dtype=dtype) as comparison:
        perplexity(artifact, tokens_NT, device=CPU, dtype=dtype, observe=comparison)
    return comparison.result(tokens_NT, Letters(), "0" * 64)


def carry_out(root: Path, recipe: list[dict[str, Any]], **changes: Any) -> Report:
    return run(order(root, recipe, **changes), lambda _progress: None, lambda: False).report


def test_by_hand() -> None:
    """Two tokens: p = (3/4, 1/4), q = (1/2, 1/2)."""
    base, artifact = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kl_divergence(base, artifact).tolist() == pytest.approx([expected], rel=1e-6)
    assert kl_divergence(base, base).tolist() == [0]


# Tied heads with bias elsewhere, capped logits, embeddings narrower than the model, heads of their own.
@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "opt-projected", "falcon"])
def test_it_is_that_of_plain_transformers_logits(
    family: str, model_dir: Callable[[str], Path], tiny: Callable[[str], ModelFiles], tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir(family), dtype=torch.float32)
    with torch.no_grad():
        base_PV = model(tokens_NT).logits[:, :-1].flatten(0, 1).double()
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.copy_((parameter * 8).round() / 8)
        artifact_PV = model(tokens_NT).logits[:, :-1].flatten(0, 1).double()
    model.save_pretrained(tmp_path / "artifact")
    found = measure(tiny(family), open_model(tmp_path / "artifact"), tokens_NT, tmp_path, torch.float32)

    base, artifact = base_PV.log_softmax(-1), artifact_PV.log_softmax(-1)
    divergence_P = functional.kl_div(artifact, base, reduction="none", log_target=True).sum(-1)
    target_P = tokens_NT[:, 1:].flatten()
    base_right, artifact_right = base.argmax(-1) == target_P, artifact.argmax(-1) == target_P
    assert found.predicted_tokens == 7 * 31
    assert found.mean == pytest.approx(float(divergence_P.mean()), rel=1e-3)
    assert found.maximum == pytest.approx(float(divergence_P.max()), rel=1e-3)
    quantiles = torch.quantile(divergence_P, torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)).tolist()
    assert (found.median, found.p90, found.p99) == pytest.approx(quantiles, rel=1e-3)
    assert found.top1_agreement == pytest.approx(
        float((base.argmax(-1) == artifact.argmax(-1)).double().mean()), abs=0.01
    )
    assert found.answers_lost == pytest.approx(float((~artifact_right[base_right]).double().mean()), abs=0.15)
    assert found.answers_won == pytest.approx(float(artifact_right[~base_right].double().mean()), abs=0.01)
    first = found.exemplars[0]
    assert (first.sequence, first.position - 1) == divmod(int(divergence_P.argmax()), 31)
    assert first.base.token == str(int(base[divergence_P.argmax()].argmax()))
    assert first.base.probability == pytest.approx(float(base[divergence_P.argmax()].max().exp()), rel=1e-3)
    assert first.token == str(int(tokens_NT[first.sequence, first.position]))
    assert first.context.split() == [str(token) for token in tokens_NT[first.sequence, : first.position].tolist()]
    assert len({exemplar.sequence for exemplar in found.exemplars}) == len(found.exemplars), "one for each passage"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_does_not_diverge_from_itself(
    dtype: torch.dtype, tiny: Callable[[str], ModelFiles], tokens_NT: Tensor, tmp_path: Path
) -> None:
    files = tiny("gemma2")
    found = measure(files, files, tokens_NT, tmp_path, dtype)
    assert (found.mean, found.maximum, found.top1_agreement, found.answers_lost, found.answers_won) == (0, 0, 1, 0, 0)


def test_looking_on_changes_no_perplexity(tiny: Callable[[str], ModelFiles], tokens_NT: Tensor, tmp_path: Path) -> None:
    files = tiny("llama")
    alone = perplexity(files, tokens_NT, device=CPU, dtype=torch.float32)
    with StatesFile(tmp_path / "states.npy", tokens_NT[:, 1:].numel()) as written:
        assert perplexity(files, tokens_NT, device=CPU, dtype=torch.float32, observe=written) == alone
        sha256 = written.finish()
    with Comparison(files, tmp_path / "states.npy", device=CPU, dtype=torch.float32) as comparison:
        assert perplexity(files, tokens_NT, device=CPU, dtype=torch.float32, observe=comparison) == alone
    assert has_states(tmp_path / "states.npy", sha256)


def test_states_that_are_cut_off_or_changed_are_not_taken(
    tiny: Callable[[str], ModelFiles], tokens_NT: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "states.npy"
    with StatesFile(path, tokens_NT[:, 1:].numel()) as written:
        perplexity(tiny("llama"), tokens_NT, device=CPU, dtype=torch.bfloat16, observe=written)
        assert not path.exists(), "it has its name only when it is whole"
        sha256 = written.finish()
    whole = path.read_bytes()
    assert has_states(path, sha256)
    for content in (whole[:-4], whole[:-1] + b"\x55", whole[:40], b""):
        path.write_bytes(content)
        assert not has_states(path, sha256)
    path.unlink()
    assert not has_states(path, sha256)


@pytest.mark.parametrize(
    "recipe", [[RTN], [{"method": "shortgpt", "blocks": 1}], [{"method": "llm-pruner", "mlp_share": 0.5}]], ids=str
)
def test_a_report_has_it_whenever_quality_was_measured(tmp_path: Path, recipe: list[dict[str, Any]]) -> None:
    """Fewer blocks, narrower blocks: each side has a head of its own."""
    report = carry_out(tmp_path, recipe)
    divergence = report.divergence
    assert divergence is not None
    assert report.artifact is not None
    assert divergence.protocol_hash == report.artifact.protocol_hash
    assert divergence.predicted_tokens == report.artifact.predicted_tokens
    assert 0 < divergence.median <= divergence.p90 <= divergence.p99 <= divergence.maximum
    assert [exemplar.divergence for exemplar in divergence.exemplars] == sorted(
        (exemplar.divergence for exemplar in divergence.exemplars), reverse=True
    )
    assert divergence.exemplars[0].divergence == pytest.approx(divergence.maximum)
    text = (tmp_path / "text.txt").read_text()
    assert all(exemplar.context in text for exemplar in divergence.exemplars)


def test_fewer_bits_diverge_further(tmp_path: Path) -> None:
    reports = [
        carry_out(tmp_path, [{**RTN, "bits": bits}], output_dir=tmp_path / f"o{bits}", work_dir=tmp_path / f"w{bits}")
        for bits in (8, 4, 2)
    ]
    found = [report.divergence for report in reports if report.divergence]
    assert found[0].mean < found[1].mean < found[2].mean
    assert found[0].top1_agreement > found[2].top1_agreement


def test_without_an_evaluation_there_is_none(tmp_path: Path) -> None:
    assert carry_out(tmp_path, [RTN], evaluation=None).divergence is None


def test_a_known_baseline_still_has_its_states_measured(tmp_path: Path) -> None:
    first = carry_out(tmp_path, [RTN])
    again = carry_out(tmp_path, [RTN], baseline=first.base, output_dir=tmp_path / "o2", work_dir=tmp_path / "w2")
    assert again.base is not None
    assert again.base.cached
    assert again.divergence == first.divergence


def test_a_resumed_run_compares_with_what_the_first_one_kept(tmp_path: Path) -> None:
    whole = carry_out(tmp_path, [RTN], output_dir=tmp_path / "whole", work_dir=tmp_path / "uninterrupted")
    messages: list[str] = []

    def report(progress: Progress) -> None:
        messages.append(progress.message)

    with pytest.raises(Drained):
        run(order(tmp_path, [RTN]), report, lambda: "measuring the artifact" in messages)
    states = tmp_path / "work" / "base-states.npy"
    written_at = states.stat().st_mtime_ns
    resumed = carry_out(tmp_path, [RTN], output_dir=tmp_path / "o2")
    assert states.stat().st_mtime_ns == written_at
    assert resumed.divergence == whole.divergence

    # Half of a file, as a lost machine may leave it: the base is measured again.
    states.write_bytes(states.read_bytes()[:1000])
    assert json.loads((tmp_path / "work" / "base-evaluation.json").read_text())["states_sha256"]
    assert carry_out(tmp_path, [RTN], output_dir=tmp_path / "o3").divergence == whole.divergence
