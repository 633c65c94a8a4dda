"""Bits for each layer: the program against all assignments, the foretold loss against the loss, budgets, files."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.engine.conftest import CPU, Compressor, shard_bytes
from tests.engine.orders import order
from tests.engine.test_depth import deep_model, measured
from torch import Tensor
from transformers import AutoModelForCausalLM

from paredown.contracts.job import Format
from paredown.contracts.recipes import (
    LlmPruner,
    Mixed,
    Recipe,
    Rtn,
    ShortGpt,
    Sparsegpt,
    Stage,
    Wanda,
    recipe_name,
)
from paredown.engine.architectures import architecture_of
from paredown.engine.errors import Drained, FormatRefused, RecipeUnfit
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.formats import WRITERS, compressed_tensors
from paredown.engine.method import LinearWeight
from paredown.engine.methods import gptq, mixed, rtn
from paredown.engine.run import run
from paredown.engine.statistics import InputStatistics, Statistic
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelFiles, open_model

# Scales without a search: there are many tiny layers here.
STAGE = Mixed(average_bits=4.0, group_size=32, scale_search="min_max")


def by_trying(losses: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int) -> float:
    """The least loss of all assignments within the budget."""
    return min(
        sum(row[pick] for row, pick in zip(losses, picks, strict=True))
        for picks in itertools.product(*(range(len(row)) for row in losses))
        if sum(row[pick] for row, pick in zip(sizes, picks, strict=True)) <= budget
    )


def test_the_choice_by_hand() -> None:
    # Three sets; the second gains most from its second choice, the third gains more for each bit but does not fit too.
    losses = [[4.0, 3.0], [9.0, 1.0], [2.0, 0.0]]
    sizes = [[2, 4], [2, 6], [2, 3]]
    assert mixed.choose(losses, sizes, 6) == [0, 0, 0]
    assert mixed.choose(losses, sizes, 7) == [0, 0, 1]
    assert mixed.choose(losses, sizes, 10) == [0, 1, 0]
    assert mixed.choose(losses, sizes, 11) == [0, 1, 1]
    assert mixed.choose(losses, sizes, 99) == [1, 1, 1]


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_assignment_within_the_budget_is_better(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 5))
    weights = data.draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    number = st.floats(0, 1e6) | st.floats(0, 1e-3)
    losses = data.draw(st.lists(st.lists(number, min_size=3, max_size=3), min_size=count, max_size=count))
    sizes = [[576 * weight * bits for bits in (2, 3, 6)] for weight in weights]
    least, most = (sum(row[place] for row in sizes) for place in (0, -1))
    budget = data.draw(st.integers(least, most + 5))
    chosen = mixed.choose(losses, sizes, budget)
    assert sum(row[pick] for row, pick in zip(sizes, chosen, strict=True)) <= budget
    found = sum(row[pick] for row, pick in zip(losses, chosen, strict=True))
    largest = max(map(max, losses))
    assert found <= by_trying(losses, sizes, budget) + 1e-6 * largest


@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_foretold_is_the_error_that_gptq_ends_with(activation_order: bool, symmetric: bool) -> None:
    """Over inputs whose channels depend on each other, so that rounding to nearest does far worse than GPTQ."""
    generator = torch.Generator().manual_seed(0)
    inputs_TI = torch.randn(512, 8, generator=generator) @ torch.randn(8, 64, generator=generator)
    inputs_TI += 0.3 * torch.randn(512, 64, generator=generator)
    # Large weights where the inputs are small: which column has which cost matters.
    inputs_TI[:, :32] *= 0.2
    inputs = InputStatistics("layer", 64, {Statistic.HESSIAN}, CPU)
    inputs.add(inputs_TI)
    inputs.complete()
    weight_OI = torch.randn(48, 64, generator=generator)
    weight_OI[:, :32] *= 5
    config = Mixed(
        group_size=32, choices=(3, 4, 6), activation_order=activation_order, symmetric=symmetric, damping=0.001
    )
    foretold_CO = mixed.foretold_errors_CO(LinearWeight("layer", weight_OI, torch.bfloat16), inputs, config)
    for bits, foretold_O in zip(config.choices, foretold_CO, strict=True):
        linear = LinearWeight("layer", weight_OI.clone(), torch.bfloat16)
        gptq.compress(linear, inputs, config.at(bits))
        true = inputs.output_energy(weight_OI - linear.weight_OI)
        nearest = LinearWeight("layer", weight_OI.clone(), torch.bfloat16)
        rtn.compress(nearest, inputs, Rtn(bits=bits, group_size=32, symmetric=symmetric))
        assert inputs.output_energy(weight_OI - nearest.weight_OI) > 2 * true
        assert 0.7 < float(foretold_O.sum()) / true < 1.4
    assert (foretold_CO[:-1] > foretold_CO[1:]).all()


def test_a_silent_channel_costs_nothing() -> None:
    inputs = InputStatistics("layer", 64, {Statistic.HESSIAN}, CPU)
    inputs.add(torch.randn(256, 64, generator=torch.Generator().manual_seed(0)) * (torch.arange(64) % 2))
    inputs.complete()
    costs_I = mixed.column_costs_I(inputs, STAGE)
    assert ((costs_I > 0) == (torch.arange(64) % 2 == 1)).all()


def test_some_rows_tell_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where few rows have most of the gradient, and rows differ in size."""
    generator = torch.Generator().manual_seed(3)
    inputs = InputStatistics("layer", 64, {Statistic.HESSIAN}, CPU)
    inputs.add(torch.randn(256, 64, generator=generator) @ torch.randn(64, 64, generator=generator))
    inputs.complete()
    weight_OI = torch.randn(1000, 64, generator=generator) * torch.rand(1000, 1, generator=generator)
    per_error_O = torch.randn(1000, generator=generator).mul_(2).exp_()
    linear = LinearWeight("layer", weight_OI, torch.bfloat16)
    config = Mixed(group_size=32)
    of_some_C = mixed.foretold_losses_C(linear, inputs, per_error_O, config)
    assert torch.equal(linear.weight_OI, weight_OI)
    exact_C = mixed.foretold_errors_CO(linear, inputs, config) @ per_error_O
    assert of_some_C.tolist() == pytest.approx(exact_C.tolist(), rel=0.1)
    monkeypatch.setattr(mixed, "TRIED_ROWS", 1000)
    assert mixed.foretold_losses_C(linear, inputs, per_error_O, config).tolist() == pytest.approx(exact_C.tolist())
    assert mixed.foretold_losses_C(linear, inputs, torch.zeros(1000), config).tolist() == [0, 0, 0, 0]


def average(result: CompressedModel) -> float:
    return sum(layer.bits * layer.weights for layer in result.layers) / sum(layer.weights for layer in result.layers)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
@pytest.mark.parametrize("average_bits", [3.2, 4.0, 5.7])
def test_the_average_is_met_and_never_exceeded(
    family: str, average_bits: float, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    stage = STAGE.model_copy(update={"average_bits": average_bits})
    result = compress(tiny(family), (stage,), tokens_NT)
    assert average(result) <= average_bits
    weights = sum(layer.weights for layer in result.layers)
    largest = 2 * max(sum(layer.weights for layer in group) for group in groups_of(result)) / weights
    assert average(result) > average_bits - largest


def groups_of(result: CompressedModel) -> list[list]:  # type: ignore[type-arg]
    """Layers that must have equal bits: those that share an input, and a block's experts."""
    layers = {layer.name: layer for layer in result.layers}
    architecture = architecture_of(result.config)
    found = []
    for block in range(result.config.num_hidden_layers):
        groups = [[layers[f"{architecture.blocks}.{block}.{name}"] for name in group] for group in architecture.groups]
        experts = [layer for group in groups for layer in group if ".experts." in layer.name]
        found += [group for group in groups if ".experts." not in group[0].name] + ([experts] if experts else [])
    return found


def test_one_sweep_has_one_damping() -> None:
    with pytest.raises(ValueError, match="the mixed after it are solved in one sweep, with one damping"):
        TypeAdapter(Recipe).validate_python([Sparsegpt().identity(), {"method": "mixed", "damping": 0.02}])
    assert recipe_name((Sparsegpt(), STAGE)) == "sparsegpt-50% + mixed-4"


@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen2_moe"])
def test_layers_that_runtimes_join_have_equal_bits(
    family: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    result = compress(tiny(family), (STAGE,), tokens_NT)
    bits = [{layer.bits for layer in group} for group in groups_of(result)]
    assert all(len(each) == 1 for each in bits)
    assert len(set.union(*bits)) > 1


def test_more_bits_go_where_the_loss_depends_on_them(compress: Compressor, tokens_NT: Tensor, tmp_path: Path) -> None:
    """A block whose output is scaled down hardly moves the loss."""
    model = deep_model(tmp_path / "model", blocks=3)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.get_parameter(f"model.layers.1.{name}.weight").mul_(1e-3)
    model.save_pretrained(tmp_path / "model")
    result = compress(open_model(tmp_path / "model"), (STAGE,), tokens_NT)
    importance = [block.importance or 0.0 for block in result.stages[0].blocks]
    assert importance[1] < 0.01 * min(importance[0], importance[2])
    assert {layer.bits for layer in result.layers if ".layers.1." in layer.name} == {2.5}


def test_skipped_layers_are_no_part_of_the_budget(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    skip = ("*.k_proj", "model.layers.1.*")
    result = compress(tiny("llama"), (STAGE.model_copy(update={"skip": skip}),), tokens_NT)
    skipped = {name for name in result.linear_names if name.endswith("k_proj") or ".1." in name}
    assert {name for name in result.linear_names if result.quantized(name) is None} == skipped
    kept = [layer for layer in result.layers if layer.name not in skipped]
    assert 3.7 < sum(layer.bits * layer.weights for layer in kept) / sum(layer.weights for layer in kept) <= 4.0
    assert result.stages[0].blocks[1].importance == 0


@pytest.mark.parametrize(("average_bits", "hint"), [(2.4, "less than the 2.5"), (6.6, "more than the 6.5")])
def test_a_budget_out_of_reach_is_refused(
    average_bits: float, hint: str, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    with pytest.raises(RecipeUnfit, match=hint) as raised:
        compress(tiny("llama"), (STAGE.model_copy(update={"average_bits": average_bits}),), tokens_NT)
    assert raised.value.field == "average_bits"


@pytest.mark.usefixtures("small_batches")
def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    recipe: tuple[Stage, ...] = (Wanda(), STAGE)
    steps: list[float] = []
    whole = compress(
        tiny("llama"), recipe, tokens_NT, "whole", on_progress=lambda done, total: steps.append(done / total)
    )
    assert steps == sorted(steps)
    # In the survey, on the way back, and in the pass through the linears.
    for stop in (1, 4, 7):
        answers = iter([False] * stop)
        with pytest.raises(Drained):
            compress(tiny("llama"), recipe, tokens_NT, f"{stop}", should_drain=lambda: next(answers, True))  # noqa: B023
        result = compress(tiny("llama"), recipe, tokens_NT, f"{stop}")
        assert result.stages == whole.stages
        assert shard_bytes(tmp_path / f"{stop}") == shard_bytes(tmp_path / "whole")


@pytest.mark.usefixtures("small_batches")
def test_blocks_of_another_assignment_are_not_resumed(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compress(tiny("llama"), (STAGE,), tokens_NT)
    monkeypatch.setattr(mixed, "choose", lambda losses, *_: [0] * len(losses))
    second = compress(tiny("llama"), (STAGE,), tokens_NT)
    assert {layer.bits for layer in second.layers} == {2.5}
    assert {layer.bits for layer in first.layers} != {2.5}


def test_all_layers_at_one_width_are_gptqs(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "choose", lambda losses, *_: [2] * len(losses))
    result = compress(tiny("llama"), (STAGE,), tokens_NT)
    plain = compress(tiny("llama"), (STAGE.at(4),), tokens_NT, "plain")
    for name in result.names:
        assert torch.equal(result.tensor(name), plain.tensor(name))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox", "phi3", "gemma3"])
def test_a_file_of_several_widths_loads_in_stock_transformers(
    family: str, compress: Compressor, tokens_NT: Tensor, tmp_path: Path, tiny: Callable[[str], ModelFiles]
) -> None:
    recipe: tuple[Stage, ...] = (STAGE.model_copy(update={"embeddings": 8 if family == "phi3" else 16}),)
    if family == "llama":
        recipe = (ShortGpt(blocks=1), LlmPruner(mlp_share=0.5), Wanda(pattern="2:4"), STAGE)
    result = compress(tiny(family), recipe, tokens_NT)
    assert len({layer.bits for layer in result.layers}) > 1
    (tmp_path / "artifact").mkdir()
    WRITERS[Format.COMPRESSED_TENSORS](result, tmp_path / "artifact")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact")
    with torch.no_grad():
        # transformers dequantizes at the first forward.
        reloaded(input_ids=tokens_NT[:1])
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    assert measured(torch.nn.Module.to(reloaded, torch.float32), tokens_NT) == pytest.approx(found, rel=1e-4)


def test_a_run_reports_the_bits_of_each_layer_and_proves_the_file(tmp_path: Path) -> None:
    asked = order(tmp_path, [STAGE.identity()], runtimes=("transformers",))
    report = run(asked, lambda _progress: None, lambda: False).report
    assert 3.6 < report.average_bits <= 4
    assert len({layer.bits for layer in report.layers}) > 1
    assert report.artifact is not None
    proof, vllm, _ = report.runtimes
    assert proof.loads
    assert proof.perplexity == pytest.approx(report.artifact.perplexity, rel=1e-4)
    assert "for transformers" in (vllm.detail or "")


@pytest.mark.parametrize(
    ("family", "changes", "field", "hint"),
    [
        ("llama", {"symmetric": False}, "symmetric", "no zero points"),
        ("mixtral", {}, "format", "experts"),
        ("falcon", {}, "format", "falcon"),
    ],
)
def test_what_would_not_load_is_refused_before_the_work(
    family: str, changes: dict[str, bool], field: str, hint: str, tiny: Callable[[str], ModelFiles]
) -> None:
    with pytest.raises(FormatRefused, match=hint) as raised:
        compressed_tensors.check(tiny(family).config, (STAGE.model_copy(update=changes),))
    assert raised.value.field == field


def test_stored_bits_are_what_the_files_hold(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    for changes in ({}, {"symmetric": False}, {"group_size": None}):
        stage = STAGE.model_copy(update=changes)
        result = compress(tiny("llama"), (stage,), tokens_NT, f"{changes}")
        for layer in result.layers:
            quantized = result.quantized(layer.name)
            assert quantized is not None
            shape = tuple(quantized.codes_OI.shape)
            assert stage.at(quantized.bits).stored_bits(*shape) == pytest.approx(layer.bits * math.prod(shape))
