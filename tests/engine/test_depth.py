"""Methods that drop blocks: by hand, against transformers, on models whose answer is known, and through every stop."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import CPU, FAMILIES, Compressor, random_model, shard_bytes
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention

from paredown.contracts.job import Format
from paredown.contracts.recipes import Deeper, Depth, Gptq, Laco, ShortGpt, Stage, Wanda
from paredown.engine.depth import Blend, DepthView
from paredown.engine.errors import Drained, NanFound, RecipeUnfit
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.formats import WRITERS
from paredown.engine.methods import deeper, laco, shortgpt
from paredown.engine.stream import CompressedModel
from paredown.engine.weights import ModelFiles, open_model

pytestmark = pytest.mark.usefixtures("small_batches")
EVERY: tuple[Depth, ...] = (
    ShortGpt(blocks=2),
    Deeper(blocks=2),
    Laco(blocks=2, layers_per_merge=2, lowest=0, interval=1, samples=3),
)
METHODS = [stage.method for stage in EVERY]


def deep_model(directory: Path, blocks: int = 6, model_type: str = "llama", **fields: Any) -> PreTrainedModel:
    """A tiny model deep enough to lose something, saved in float32 with values that bfloat16 holds as well."""
    name = f"deep {model_type} {blocks} {fields}"
    depth = {"n_layer" if model_type == "gpt2" else "num_hidden_layers": blocks}
    FAMILIES[name] = (model_type, FAMILIES[model_type][1] | depth | fields, torch.float32)
    try:
        model = random_model(name)
    finally:
        del FAMILIES[name]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(directory)
    return model


def disarm(model: PreTrainedModel, *blocks: int) -> None:
    """Let a block add nothing to the hidden states."""
    with torch.no_grad():
        for block in blocks:
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                model.get_parameter(f"model.layers.{block}.{name}.weight").zero_()


def kept(result: CompressedModel) -> list[int]:
    return [block.block for block in result.stages[0].blocks if block.kept]


def importance(result: CompressedModel) -> list[float | None]:
    return [block.importance for block in result.stages[0].blocks]


def without(model: PreTrainedModel, dropped: list[int]) -> PreTrainedModel:
    """transformers' own model with some of its layers taken out."""
    layers = model.model.layers
    model.model.layers = nn.ModuleList(layer for index, layer in enumerate(layers) if index not in dropped)
    return model


def measured(model: PreTrainedModel, tokens_NT: Tensor) -> float:
    with torch.no_grad():
        return math.exp(model(input_ids=tokens_NT, labels=tokens_NT, use_cache=False).loss.item())


def test_influence_by_hand() -> None:
    # Two tokens: one turned by 60 degrees, one only made longer.
    before = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    after = torch.tensor([[[0.5, 3**0.5 / 2], [0.0, 9.0]]])
    assert shortgpt.influence(before, after).flatten().tolist() == pytest.approx([0.5, 0.0])


def test_angular_distance_by_hand() -> None:
    # A quarter turn, half a turn, and none: (1/2 + 1 + 0) / 3.
    first = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 3.0]]])
    second = torch.tensor([[[0.0, 5.0]], [[-2.0, 0.0]], [[0.0, 1.0]]])
    assert deeper.angular_distance(first, second) == pytest.approx(0.5)


def test_merges_by_hand() -> None:
    # Blocks 3 and 4 go into 2, which has the linears of 4 then. Then that one, now number 2, goes into 1.
    assert laco.merged(6, ((2, 2),), "last") == [Blend.of(0), Blend.of(1), Blend(2, {4: 1}), Blend.of(5)]
    assert laco.merged(6, ((2, 2), (1, 1)), "last") == [Blend.of(0), Blend(1, {4: 1}), Blend.of(5)]
    # As printed: θ₂ + (θ₃ − θ₂) + (θ₄ − θ₂).
    assert laco.merged(6, ((2, 2),), "sum") == [
        Blend.of(0),
        Blend.of(1),
        Blend(2, {2: -1, 3: 1, 4: 1}),
        Blend.of(5),
    ]
    assert laco.merged(6, ((2, 2), (1, 1)), "sum") == [
        Blend.of(0),
        Blend(1, {2: -1, 3: 1, 4: 1}),
        Blend.of(5),
    ]


def test_similarity_by_hand() -> None:
    # Two sequences as one vector each: equal up to length, and at right angles.
    first = [torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0.0]]])]
    second = [torch.tensor([[[2.0, 4.0]]]), torch.tensor([[[0.0, 1.0]]])]
    assert laco.similarity(first, second) == pytest.approx(0.5)
    assert laco.similarity(first, [second[0], torch.tensor([[[math.nan, 1.0]]])]) == -1


def test_the_walk_of_the_paper_by_hand() -> None:
    stage = Laco(layers_per_merge=4, lowest=1, interval=2)
    tried: list[tuple[int, int]] = []

    def accepts(merges: tuple[tuple[int, int], ...]) -> bool:
        tried.append(merges[-1])
        return merges[-1][0] in (11, 6)

    # From 16 − 4 downwards. After a merge into 11, 13 blocks are left: 11 − 2 = 9, where a merge has its four.
    assert stage.walk(16, 6, frozenset(), accepts) == ((11, 3), (6, 3))
    assert tried == [(12, 3), (11, 3), (9, 3), (8, 3), (7, 3), (6, 3)]
    tried.clear()
    # The last merge takes no more than is missing, and none that would touch a protected block.
    assert stage.walk(16, 4, frozenset({14}), accepts) == ((6, 3),)
    assert tried == [(10, 3), (9, 3), (8, 3), (7, 3), (6, 3), (4, 1), (3, 1), (2, 1), (1, 1)]
    assert stage.walk(16, 4, frozenset(), accepts) == ((11, 3), (6, 1))
    assert stage.most(16, frozenset()) == 12, "four times three, down to block 1"
    assert stage.model_copy(update={"highest": 8}).walk(16, 3, frozenset(), lambda _merges: True) == ((4, 3),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_importance_is_what_transformers_hidden_states_give(
    dtype: torch.dtype, compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model").to(dtype)
    seen: list[Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _module, args, output: seen.extend([args[0], output]))
    with torch.no_grad():
        model(input_ids=tokens_NT, use_cache=False)
    entering = [*seen[::2], seen[-1]]
    files = open_model(tmp_path / "model")

    influences = [
        1 - float(nn.functional.cosine_similarity(a.float(), b.float(), dim=-1).mean()) for a, b in pairwise(entering)
    ]
    result = compress(files, (ShortGpt(blocks=2),), tokens_NT, "short", dtype=dtype)
    assert importance(result) == pytest.approx(influences, rel=1e-4 if dtype == torch.float32 else 0.02)
    least = sorted(range(6), key=influences.__getitem__)[:2]
    assert kept(result) == [block for block in range(6) if block not in least]

    distances = [
        float(
            nn.functional.cosine_similarity(
                entering[start][:, -2:].float(), entering[start + 3][:, -2:].float(), dim=-1
            )
            .arccos()
            .mean()
        )
        / math.pi
        for start in range(4)
    ]
    result = compress(files, (Deeper(blocks=3, last_tokens=2),), tokens_NT, "deep", dtype=dtype)
    assert importance(result)[:4] == pytest.approx(distances, rel=1e-4 if dtype == torch.float32 else 0.02)
    assert importance(result)[4:] == [None, None]
    best = min(range(4), key=distances.__getitem__)
    assert kept(result) == [block for block in range(6) if not best <= block < best + 3]


@pytest.mark.parametrize("stage", EVERY[:2], ids=["shortgpt", "deeper"])
def test_the_artifact_is_transformers_model_with_those_layers_taken_out(
    stage: Depth, compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model")
    result = compress(open_model(tmp_path / "model"), (stage,), tokens_NT)
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    dropped = [block for block in range(6) if block not in kept(result)]
    assert len(dropped) == 2
    assert found == pytest.approx(measured(without(model, dropped), tokens_NT), rel=1e-5)
    assert found != pytest.approx(measured(deep_model(tmp_path / "again"), tokens_NT), rel=1e-3)


@pytest.mark.parametrize("stage", EVERY[:2], ids=["shortgpt", "deeper"])
def test_blocks_that_do_nothing_are_those_that_go(
    stage: Depth, compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model")
    disarm(model, 2, 3)
    model.save_pretrained(tmp_path / "model")
    result = compress(open_model(tmp_path / "model"), (stage,), tokens_NT)
    assert kept(result) == [0, 1, 4, 5]
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    assert found == pytest.approx(measured(model, tokens_NT), rel=1e-5), "nothing was lost"


def test_shortgpt_takes_blocks_apart_from_each_other_and_deeper_does_not(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model")
    disarm(model, 1, 4)
    model.save_pretrained(tmp_path / "model")
    files = open_model(tmp_path / "model")
    assert kept(compress(files, (ShortGpt(blocks=2),), tokens_NT, "short")) == [0, 2, 3, 5]
    left = kept(compress(files, (Deeper(blocks=2),), tokens_NT, "deep"))
    [first, second] = [block for block in range(6) if block not in left]
    assert second == first + 1


@pytest.mark.parametrize("merging", ["last", "sum"])
def test_laco_merges_linears_and_keeps_the_norms_of_the_prior_block(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path, merging: Any
) -> None:
    model = deep_model(tmp_path / "model", attention_bias=True)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    # Any merge is accepted: 3, 4 and 5 go into 2.
    stage = Laco(blocks=3, layers_per_merge=4, threshold=-1, merging=merging)
    result = compress(open_model(tmp_path / "model"), (stage,), tokens_NT)
    assert kept(result) == [0, 1, 2]
    for leaf in ("self_attn.q_proj.weight", "self_attn.k_proj.bias", "mlp.down_proj.weight"):
        prior, *rear = [weights[f"model.layers.{block}.{leaf}"] for block in (2, 3, 4, 5)]
        expected = rear[-1] if merging == "last" else prior + sum(other - prior for other in rear)
        assert torch.allclose(result.tensor(f"model.layers.2.{leaf}").float(), expected, atol=0.01), leaf
    norm = "model.layers.2.input_layernorm.weight"
    assert torch.equal(result.tensor(norm).float(), weights[norm])


def test_laco_measures_the_model_that_a_merge_would_give(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    """A try starts from what enters its block; the similarity is that of whole forwards all the same."""
    model = deep_model(tmp_path / "model")
    files = open_model(tmp_path / "model")
    stage = Laco(blocks=2, layers_per_merge=2, lowest=0, interval=1, threshold=-1, samples=3)
    result = compress(files, (stage,), tokens_NT)
    with torch.no_grad():
        base = model.model(tokens_NT[:3], use_cache=False).last_hidden_state
        for block, merges in ((4, ((4, 1),)), (3, ((4, 1), (3, 1)))):
            tried = AutoModelForCausalLM.from_config(DepthView(files, laco.merged(6, merges, "last")).config)
            view = DepthView(files, laco.merged(6, merges, "last"))
            tried.load_state_dict({name: view.tensor(name).float() for name in view.names}, strict=False)
            states = tried.eval().model(tokens_NT[:3], use_cache=False).last_hidden_state
            expected = float(nn.functional.cosine_similarity(base.flatten(1), states.flatten(1)).mean())
            assert importance(result)[block] == pytest.approx(1 - expected, abs=1e-5)


def test_laco_merges_like_blocks_and_leaves_unlike_ones(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model")
    disarm(model, 2, 3)
    model.save_pretrained(tmp_path / "model")
    stage = Laco(blocks=1, layers_per_merge=2, lowest=0, threshold=0.99999)
    result = compress(open_model(tmp_path / "model"), (stage,), tokens_NT)
    assert kept(result) == [0, 1, 2, 4, 5]
    assert importance(result)[2] == pytest.approx(0, abs=1e-5)
    assert "above the threshold of 0.99999" in result.stages[0].summary


def test_a_threshold_that_lets_too_few_merge_falls_until_enough_do(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    deep_model(tmp_path / "model", blocks=4)
    files = open_model(tmp_path / "model")

    def collapsed(threshold: float) -> CompressedModel:
        stage = Laco(blocks=2, layers_per_merge=2, lowest=0, interval=1, samples=2, threshold=threshold)
        return compress(files, (stage,), tokens_NT, f"{threshold}")

    strict = collapsed(0.95)
    reached = float(strict.stages[0].summary.rstrip(".").rpartition(" ")[2])
    assert len(kept(strict)) == 2
    assert -1 < reached < 0.9
    # Asked for at once, it gives the same; one step above it is not enough.
    assert collapsed(reached).stages == collapsed(round(reached + 0.05, 6)).stages == strict.stages


def test_a_chain_loads_in_stock_transformers_with_fewer_layers(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    windows = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}
    model = deep_model(tmp_path / "model", model_type="qwen2", **windows)
    disarm(model, 1, 2)
    model.save_pretrained(tmp_path / "model")
    files = open_model(tmp_path / "model")
    kinds = files.config.layer_types
    assert len(set(kinds)) == 2
    recipe: tuple[Stage, ...] = (ShortGpt(blocks=2), Wanda(pattern="2:4"), Gptq(bits=4, group_size=32))
    result = compress(files, recipe, tokens_NT)
    (tmp_path / "artifact").mkdir()
    WRITERS[Format.COMPRESSED_TENSORS](result, tmp_path / "artifact")
    config = json.loads((tmp_path / "artifact" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert kept(result) == [0, 3, 4, 5]
    assert config["layer_types"] == [kinds[block] for block in (0, 3, 4, 5)] != kinds[:4]
    assert files.config.num_hidden_layers == 6, "the base's configuration is left as it was"
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact").float()
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    assert measured(reloaded, tokens_NT) == pytest.approx(found, rel=1e-4)
    for layer in result.layers:
        weight = result.tensor(f"{layer.name}.weight")
        assert int((weight.view(-1, 4) == 0).sum(1).min()) >= 2


def test_patterns_of_later_stages_go_by_the_new_numbers(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model")
    disarm(model, 1)
    model.save_pretrained(tmp_path / "model")
    files = open_model(tmp_path / "model")
    result = compress(files, (ShortGpt(blocks=1), Wanda(skip=("model.layers.1.*",))), tokens_NT)
    name = "mlp.up_proj.weight"
    assert torch.equal(result.tensor(f"model.layers.1.{name}"), files.tensor(f"model.layers.2.{name}"))
    assert bool((result.tensor(f"model.layers.2.{name}") == 0).any())


def test_blocks_with_skipped_layers_stay(compress: Compressor, tokens_NT: Tensor, tmp_path: Path) -> None:
    model = deep_model(tmp_path / "model")
    disarm(model, 2, 3)
    model.save_pretrained(tmp_path / "model")
    files = open_model(tmp_path / "model")
    skip = ("model.layers.2.*", "model.layers.5.mlp.up_proj")
    for stage in EVERY:
        changed = stage.model_copy(update={"skip": skip})
        assert {2, 5} <= set(kept(compress(files, (changed,), tokens_NT, stage.method)))


def test_a_view_reads_nothing_until_it_is_asked(tmp_path: Path) -> None:
    deep_model(tmp_path / "model")
    files = open_model(tmp_path / "model")
    read: list[str] = []

    class Watched:
        config, names, storage_dtype, source = files.config, files.names, files.storage_dtype, files.source

        def tensor(self, name: str) -> Tensor:
            read.append(name)
            return files.tensor(name)

    view = DepthView(Watched(), [Blend.of(5), Blend(1, {1: -1, 2: 1, 3: 1})])
    assert read == []
    view.tensor("model.layers.0.mlp.up_proj.weight")
    assert read == ["model.layers.5.mlp.up_proj.weight"]
    view.tensor("model.layers.1.mlp.up_proj.weight")
    assert read[1:] == [f"model.layers.{block}.mlp.up_proj.weight" for block in (1, 2, 3)]


@pytest.mark.parametrize(
    ("stage", "stops"), [(EVERY[0], (1, 3, 5)), (EVERY[1], (3, 5)), (EVERY[2], (2, 5, 7))], ids=METHODS
)
def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes(
    stage: Depth,
    stops: tuple[int, ...],
    compress: Compressor,
    tokens_NT: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deep_model(tmp_path / "model", blocks=4)
    files = open_model(tmp_path / "model")
    recipe: tuple[Stage, ...] = (stage, Wanda())
    steps: list[int] = []
    whole = compress(files, recipe, tokens_NT, "whole", on_progress=lambda done, _all: steps.append(done))
    assert steps == sorted(steps)
    spent: list[int] = []
    for stop in stops:
        # Asked before each block of the survey, each try of laco, and each block of the stream.
        answers = iter([False] * stop)
        with pytest.raises(Drained):
            compress(files, recipe, tokens_NT, f"{stop}", should_drain=lambda: next(answers, True))  # noqa: B023
        with monkeypatch.context() as patch:
            calls = _count_attention(patch)
            result = compress(files, recipe, tokens_NT, f"{stop}")
        spent.append(len(calls))
        assert result.stages == whole.stages
        assert shard_bytes(tmp_path / f"{stop}") == shard_bytes(tmp_path / "whole")
    assert spent == sorted(set(spent), reverse=True), "what was found before the stop is not found again"


def _count_attention(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one with each forward through a block's attention."""
    calls: list[None] = []
    plain = LlamaAttention.forward

    def counted(self: LlamaAttention, *args: Any, **options: Any) -> Any:
        calls.append(None)
        return plain(self, *args, **options)

    monkeypatch.setattr(LlamaAttention, "forward", counted)
    return calls


@pytest.mark.parametrize("damaged", ["stage-0/block-00001.safetensors", "stage-0/journal.json"])
def test_what_is_damaged_of_a_survey_is_found_again(
    damaged: str, compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    deep_model(tmp_path / "model", blocks=4)
    files = open_model(tmp_path / "model")
    whole = compress(files, (ShortGpt(blocks=1),), tokens_NT)
    path = tmp_path / "work" / damaged
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert compress(files, (ShortGpt(blocks=1),), tokens_NT).stages == whole.stages


@pytest.mark.parametrize("stage", EVERY, ids=METHODS)
def test_more_blocks_than_can_go_are_refused(
    stage: Depth, tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    for count in (3, 30):
        with pytest.raises(RecipeUnfit, match=rf"cannot drop {count} of 3 blocks; .* at most \d") as raised:
            compress(tiny("llama"), (stage.model_copy(update={"blocks": count}),), tokens_NT)
        assert raised.value.field == "blocks"
    with pytest.raises(RecipeUnfit) as raised:
        compress(tiny("llama"), (stage.model_copy(update={"blocks": None, "share": 0.9}),), tokens_NT)
    assert raised.value.field == "share"


@pytest.mark.parametrize("stage", EVERY, ids=METHODS)
def test_states_that_are_not_finite_name_their_block(
    stage: Depth, compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model")
    with torch.no_grad():
        model.get_parameter("model.layers.3.mlp.down_proj.weight")[0, 0] = math.nan
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(NanFound, match="leave block 3"):
        compress(open_model(tmp_path / "model"), (stage,), tokens_NT)


def test_merges_that_overflow_are_refused_by_name(compress: Compressor, tokens_NT: Tensor, tmp_path: Path) -> None:
    model = deep_model(tmp_path / "model", blocks=3)
    with torch.no_grad():
        # Nothing goes through these weights until the merge gives the block another's up_proj.
        model.get_parameter("model.layers.1.mlp.up_proj.weight").zero_()
        model.get_parameter("model.layers.1.mlp.down_proj.weight").fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    stage = Laco(blocks=2, layers_per_merge=3, lowest=0, merging="sum")
    with pytest.raises(RecipeUnfit, match="no model whose output is finite") as raised:
        compress(open_model(tmp_path / "model"), (stage,), tokens_NT)
    assert raised.value.field == "layers_per_merge"


def test_a_model_whose_blocks_are_numbered_is_refused(compress: Compressor, tokens_NT: Tensor, tmp_path: Path) -> None:
    deep_model(tmp_path / "model", model_type="gpt2", blocks=3, scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(RecipeUnfit, match="scale_attn_by_inverse_layer_idx"):
        compress(open_model(tmp_path / "model"), (ShortGpt(blocks=1),), tokens_NT)
