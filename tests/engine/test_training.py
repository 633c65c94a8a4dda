"""Training stages: gradients against transformers' own, the merged view, budgets of tokens, and every stop."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.engine.conftest import CPU, VOCABULARY, Compressor, shard_bytes
from tests.engine.orders import save_text
from tests.engine.test_depth import deep_model, measured
from tests.support.models import byte_tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from paredown.contracts.job import Format
from paredown.contracts.recipes import Distil, LlmPruner, Lora, ShortGpt, Stage, Training
from paredown.engine import blockwise, data, training
from paredown.engine.adapters import Adapters, merged
from paredown.engine.architectures import architecture_of
from paredown.engine.blockwise import relative_error
from paredown.engine.errors import CalibrationTooShort, Drained, RecipeUnfit, TrainingDiverged
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.formats import WRITERS
from paredown.engine.forward import BlockForward
from paredown.engine.methods.distil import divergence, objective_of
from paredown.engine.methods.lora import objective
from paredown.engine.stream import CompressedModel
from paredown.engine.training import ResidentModel, Steps, checkpoint_steps, curve, learning_rate
from paredown.engine.weights import ModelFiles, open_model

pytestmark = pytest.mark.usefixtures("small_batches")
# Four steps of four sequences, each two micro-batches.
SHORT: dict[str, Any] = {"tokens": 512, "batch_size": 4, "sequence_length": 32, "rank": 4, "learning_rate": 0.01}


def counting() -> Tensor:
    """Sequences with something to learn: each counts on from where it starts."""
    start = torch.randint(VOCABULARY, (64, 1), generator=torch.Generator().manual_seed(3))
    return (start + torch.arange(32)) % VOCABULARY


@pytest.fixture
def sequences_NT() -> Tensor:
    return counting()


def loaded(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


class LowRank(nn.Module):
    """A linear with its adapter, as the paper writes it."""

    def __init__(self, linear: nn.Module, down: Tensor, scale: float) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(down.clone())
        self.up = nn.Parameter(torch.zeros(linear.weight.shape[0], len(down)))
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs) + self.scale * (inputs @ self.down.T) @ self.up.T


def test_a_step_is_that_of_a_whole_backward_pass_in_transformers(tmp_path: Path, sequences_NT: Tensor) -> None:
    """Losses, gradients and weights after three steps of healing and of distillation, a block at a time or not."""
    deep_model(tmp_path / "student", blocks=3)
    deep_model(tmp_path / "teacher", blocks=4)
    batches = torch.split(sequences_NT[:12], 4)
    with torch.no_grad():
        teacher = [loaded(tmp_path / "teacher")(batch).logits[:, :-1].flatten(0, 1) for batch in batches]
    for config in (Lora(**SHORT), Distil(**SHORT, temperature=2.0, distillation_weight=0.7, language_weight=0.3)):
        resident = ResidentModel(open_model(tmp_path / "student"), CPU, torch.float32)
        base = ResidentModel(open_model(tmp_path / "teacher"), CPU, torch.float32)
        names = [name for name in resident.skeleton.all_linear_names() if not name.endswith("k_proj")]
        adapters = Adapters(resident.skeleton, names, config, CPU)
        model = loaded(tmp_path / "student")
        for name in names:
            down = adapters.tensors()[f"{name}.down"]
            model.set_submodule(name, LowRank(model.get_submodule(name), down, 8.0), strict=True)
        peers = [
            parameter for name in names for parameter in (model.get_submodule(name).down, model.get_submodule(name).up)
        ]
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is peer for peer in peers))
        optimizer = torch.optim.AdamW(peers, betas=(0.9, 0.95), weight_decay=0)
        steps = Steps(adapters.parameters, config)
        for step, batch in enumerate(batches):
            logits = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
            loss = functional.cross_entropy(logits, batch[:, 1:].flatten())
            if isinstance(config, Distil):
                target = (teacher[step] / 2).softmax(-1)
                kl = (target * (target.log() - (logits / 2).log_softmax(-1))).sum(-1).mean()
                loss = 0.7 * 4 * kl + 0.3 * loss
            loss.backward()
            with adapters.attached():
                wanted = objective_of(base, config) if isinstance(config, Distil) else objective
                assert resident.backward(batch, wanted) == pytest.approx(loss.item(), rel=1e-5)
            for ours, theirs in zip(adapters.parameters, peers, strict=True):
                assert ours.grad is not None
                # Of the whole: how single small numbers round depends on the processor.
                assert (ours.grad - theirs.grad).norm() <= 1e-3 * theirs.grad.norm()
            nn.utils.clip_grad_norm_(peers, 1.0)
            optimizer.param_groups[0]["lr"] = learning_rate(step, config)
            optimizer.step()
            optimizer.zero_grad()
            steps.take(step, loss.item())
        for ours, theirs in zip(adapters.parameters, peers, strict=True):
            assert torch.allclose(ours, theirs, atol=2e-4)
            assert bool((ours != 0).any())


def test_what_is_learned_in_words_of_the_paper() -> None:
    # W + s B A, with s = 2: rows 1 and 2 get 2 × (3, 4) times B's 1 and -1.
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    down, up = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [-1.0]])
    assert merged(weight, down, up, 2.0).tolist() == [[7, 8], [-6, -7]]
    # Halves against a quarter and three quarters: ½ ln 2 + ½ ln ⅔, at temperature 1; none against itself.
    student, teacher = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert float(divergence(student, teacher, 1.0)) == pytest.approx(expected)
    assert float(divergence(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)
    # At temperature 2 the logits are halved, and the loss is multiplied by 4.
    assert float(divergence(2 * student, 2 * teacher, 2.0)) == pytest.approx(4 * expected)
    # Of each token by itself: ‖(0, 1)‖² / ‖(3, 4)‖², and nothing.
    states, target = torch.tensor([[[3.0, 5.0], [100.0, 0.0]]]), torch.tensor([[[3.0, 4.0], [100.0, 0.0]]])
    assert float(relative_error(states, target)) == pytest.approx(1 / 25)


def test_the_learning_rate_rises_and_falls() -> None:
    config = Lora(tokens=10 * 64, batch_size=2, sequence_length=32, learning_rate=0.1, warmup=0.4)
    rates = [learning_rate(step, config) for step in range(10)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[7] == pytest.approx(0.05)
    assert rates[9] > 0
    assert learning_rate(0, Lora(**SHORT, warmup=0)) == 0.01


def test_a_long_run_stops_no_more_than_a_thousand_times() -> None:
    assert checkpoint_steps(Lora(**SHORT)) == 10
    assert checkpoint_steps(Lora(**SHORT | {"tokens": 10**9})) == 7813  # of 7 812 500 steps


def test_a_curve_has_the_first_step_and_means_of_all_others() -> None:
    points = curve([float(loss) for loss in range(201)])
    assert (points[0].step, points[0].loss) == (1, 0)
    assert points[-1].step == 201
    assert len(points) == 41
    assert points[1].loss == pytest.approx(3)  # steps 2 to 6
    assert [point.loss for point in curve([5.0])] == [5]


def recipes(**more: Any) -> dict[str, tuple[Stage, ...]]:
    short = SHORT | more
    return {
        "lora": (ShortGpt(blocks=1), Lora(**short)),
        "distil": (ShortGpt(blocks=1), Distil(**short)),
        "block-wise": (ShortGpt(blocks=1), Distil(**short, block_wise=True)),
    }


def tuned(
    compress: Compressor, files: ModelFiles, recipe: tuple[Stage, ...], tokens_NT: Tensor, *args: Any, **options: Any
) -> CompressedModel:
    tokens = {
        index: tokens_NT[: stage.steps * stage.batch_size]
        for index, stage in enumerate(recipe)
        if isinstance(stage, Training)
    }
    return compress(files, recipe, tokens_NT[:7], *args, training=tokens, **options)


@pytest.mark.parametrize("kind", recipes())
def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes(
    kind: str, compress: Compressor, sequences_NT: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_CHECKPOINT_STEPS", 3)
    deep_model(tmp_path / "model", blocks=3)
    files, recipe = open_model(tmp_path / "model"), recipes(tokens=8 * 128)[kind]
    asked, told = [0], [0.0]

    def count() -> bool:
        asked[0] += 1
        return False

    whole = tuned(
        compress,
        files,
        recipe,
        sequences_NT,
        "whole",
        should_drain=count,
        on_progress=lambda done, total: told.append(done / total),
    )
    assert told == sorted(told)
    assert told[-1] == 1
    # In training: before its first step, in the middle, and before the last.
    for stop in (4, asked[0] // 2, asked[0] - 4):
        answers = iter([False] * stop)
        with pytest.raises(Drained):
            tuned(compress, files, recipe, sequences_NT, f"{stop}", should_drain=lambda: next(answers, True))  # noqa: B023
        result = tuned(compress, files, recipe, sequences_NT, f"{stop}")
        assert result.stages == whole.stages
        assert shard_bytes(tmp_path / f"{stop}") == shard_bytes(tmp_path / "whole")
    # All of it is there: nothing is trained again, and no model loaded for it.
    monkeypatch.setattr(training, "ResidentModel", None)
    monkeypatch.setattr(Steps, "take", None)
    assert tuned(compress, files, recipe, sequences_NT, "whole").stages == whole.stages


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows the sequences."""
    directory = tmp_path_factory.mktemp("trained")
    model = deep_model(directory, blocks=3).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(30):
        model(input_ids=counting(), labels=counting(), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(directory)
    return directory


@pytest.mark.parametrize(("kind", "pruning"), [("lora", "depth"), ("distil", "width"), ("block-wise", "depth")])
def test_training_recovers_what_was_lost_and_the_artifact_has_it(
    kind: str, pruning: str, compress: Compressor, sequences_NT: Tensor, trained: Path, tmp_path: Path
) -> None:
    """The artifact loads in stock transformers, in the source's dtype, and has what was learned."""
    files = open_model(trained)
    # The block that matters most, so that there is something to recover.
    first = {
        "depth": ShortGpt(blocks=1, skip=("model.layers.[12].*",)),
        "width": LlmPruner(mlp_share=0.75, head_groups=1),
    }[pruning]
    recipe = (first, recipes(tokens=30 * 128, learning_rate=0.02)[kind][1])
    rows = sequences_NT.repeat(2, 1)
    base, before = (
        perplexity(model, sequences_NT, device=CPU, dtype=torch.float32)[0]
        for model in (files, compress(files, recipe[:1], sequences_NT[:7], "before"))
    )
    result = tuned(compress, files, recipe, rows)
    after = perplexity(result, sequences_NT, device=CPU, dtype=torch.float32)[0]
    assert before > 1.5 * base
    assert after < (base + before) / 2
    report = result.stages[1]
    assert report.losses[-1].loss < report.losses[0].loss
    assert report.losses[-1].step == 30
    assert report.tokens_sha256 == data.TokenBlocks.of(rows[:120]).sha256
    (tmp_path / "artifact").mkdir()
    WRITERS[Format.SAFETENSORS](result, tmp_path / "artifact")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact")
    assert reloaded.dtype == files.storage_dtype
    assert measured(reloaded.float(), sequences_NT) == pytest.approx(after, rel=1e-4)


def test_at_equal_tokens_the_teacher_helps(compress: Compressor, sequences_NT: Tensor, trained: Path) -> None:
    """On a text of which a quarter is noise: healing learns the noise too, and the base knows better."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randint(VOCABULARY, sequences_NT.shape, generator=generator)
    noisy_NT = sequences_NT.where(torch.rand(sequences_NT.shape, generator=generator) < 0.75, noise)
    files = open_model(trained)
    found = {}
    for kind, recipe in recipes(tokens=12 * 128, learning_rate=0.02).items():
        result = tuned(compress, files, (LlmPruner(mlp_share=0.75, head_groups=1), recipe[1]), noisy_NT, kind)
        found[kind] = perplexity(result, sequences_NT, device=CPU, dtype=torch.float32)[0]
    assert found["distil"] < found["lora"]
    assert found["block-wise"] < found["lora"]


@pytest.mark.parametrize("family", ["gpt2", "phi3", "qwen2_moe", "falcon-alibi"])
@pytest.mark.parametrize("block_wise", [False, True])
def test_the_view_is_what_was_trained(
    family: str,
    block_wise: bool,
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    sequences_NT: Tensor,
    tmp_path: Path,
) -> None:
    """Fused, transposed and experts' linears: every merged weight is W + s B A, and skipped ones are the source's."""
    files = tiny(family)
    # In float32, where merging rounds nothing away.
    files.storage_dtype = torch.float32
    architecture = architecture_of(files.config)
    kinds, blocks = architecture.linears, architecture.blocks
    stage = Distil(**SHORT, block_wise=block_wise, skip=(f"*.{kinds[0]}",))
    first = ShortGpt(blocks=1, skip=(f"{blocks}.[12].*",))
    result = tuned(compress, files, (first, stage), sequences_NT)
    shards = sorted((tmp_path / "work" / "stage-1").glob("block-*"))
    stored = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for name in result.linear_names:
        block = int(next(part for part in name.split(".") if part.isdigit()))
        source = name.replace(f".{block}.", f".{block + 1}.", 1)
        weight = files.tensor(f"{source}.weight").float()
        if name.endswith(kinds[0]):
            assert f"dense.{name}.up" not in stored
        else:
            change = 8.0 * stored[f"dense.{name}.up"] @ stored[f"dense.{name}.down"]
            weight = weight + (change.T if family == "gpt2" else change)
        assert torch.allclose(result.tensor(f"{name}.weight"), weight, atol=1e-6)


def test_a_loss_that_is_not_finite_names_its_step(
    compress: Compressor, sequences_NT: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep_model(tmp_path / "model", blocks=3)
    files = open_model(tmp_path / "model")
    taken = Steps.take

    def burst(steps: Steps, step: int, *more: Any) -> None:
        taken(steps, step, *more)
        if step == 1:
            with torch.no_grad():
                steps._parameters[1].fill_(math.inf)

    monkeypatch.setattr(Steps, "take", burst)
    for kind, words in {"lora": "step 3 of 4 the loss", "block-wise": "step 3 of 4 of block 0 the loss"}.items():
        with pytest.raises(TrainingDiverged, match=words) as raised:
            tuned(compress, files, recipes()[kind], sequences_NT, kind)
        assert raised.value.field == "learning_rate"


def test_a_block_is_given_what_those_before_make_and_learns_what_the_base_has_there(
    compress: Compressor, sequences_NT: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks 1 and 2 of four gone, the first learns what enters the base's last, and the second what leaves it."""
    model = deep_model(tmp_path / "model", blocks=4)
    seen: list[tuple[Tensor, Tensor]] = []

    def observed(states_BTH: Tensor, target_BTH: Tensor) -> Tensor:
        seen.append((states_BTH.detach().clone(), target_BTH.clone()))
        return relative_error(states_BTH, target_BTH)

    monkeypatch.setattr(blockwise, "relative_error", observed)
    stage = Distil(**SHORT | {"batch_size": 2, "tokens": 256, "learning_rate": 0.1}, block_wise=True)
    recipe = (ShortGpt(blocks=2, skip=("model.layers.0.*", "model.layers.3.*")), stage)
    result = tuned(compress, open_model(tmp_path / "model"), recipe, sequences_NT)
    rows = sequences_NT[:8]
    outputs: dict[int, Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _module, _args, output, index=index: outputs.update({index: output}))
    (tmp_path / "artifact").mkdir()
    WRITERS[Format.SAFETENSORS](result, tmp_path / "artifact")
    made = loaded(tmp_path / "artifact")
    given: dict[int, Tensor] = {}
    for index, layer in enumerate(made.model.layers):
        layer.register_forward_hook(lambda _module, _args, output, index=index: given.update({index: output}))
    with torch.no_grad():
        model(rows, use_cache=False)
        wanted = dict(outputs)
        made(rows, use_cache=False)
        # What an untrained last block makes of what the trained first one gives.
        untrained = model.model.layers[3](
            given[0], position_embeddings=model.model.rotary_emb(given[0], torch.arange(32)[None])
        )
    # Of each block: four steps of two sequences, then all of them through what was learned.
    for block, (calls, target) in enumerate(zip((seen[:8], seen[8:]), (wanted[2], wanted[3]), strict=True)):
        for batches in (calls[:4], calls[4:]):
            assert torch.allclose(torch.cat([aim for _, aim in batches]), target, atol=1e-4)
        assert torch.allclose(torch.cat([states for states, _ in calls[4:]]), given[block], atol=1e-4)
    assert torch.allclose(seen[8][0], untrained[:2], atol=1e-4)
    assert not torch.allclose(given[0], wanted[0], atol=1e-2)


def test_the_way_back_ends_before_blocks_that_are_skipped(
    compress: Compressor, sequences_NT: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep_model(tmp_path / "model", blocks=4)
    files, backward, calls = open_model(tmp_path / "model"), BlockForward.call, []
    recipe = (ShortGpt(blocks=1), Lora(**SHORT, skip=("model.layers.[01].*",)))

    def call(forward: BlockForward, block: int, micro_batch: int) -> Tensor:
        if torch.is_grad_enabled():
            calls.append(block)
        return backward(forward, block, micro_batch)

    monkeypatch.setattr(BlockForward, "call", call)
    early = tuned(compress, files, recipe, sequences_NT, "early")
    assert set(calls) == {2}
    whole = ResidentModel.backward
    monkeypatch.setattr(
        ResidentModel, "backward", lambda model, tokens, objective, _first: whole(model, tokens, objective)
    )
    assert tuned(compress, files, recipe, sequences_NT, "whole").stages == early.stages
    assert set(calls) == {0, 1, 2}
    for kind in ("lora", "block-wise"):
        with pytest.raises(RecipeUnfit, match=r"Skipping \*_proj leaves .* nothing to train"):
            tuned(compress, files, recipes(skip=("*_proj",))[kind], sequences_NT, kind)


def test_a_rank_that_no_layer_has_is_refused(compress: Compressor, sequences_NT: Tensor, tmp_path: Path) -> None:
    deep_model(tmp_path / "model", blocks=2)
    with pytest.raises(RecipeUnfit, match="32 × 64 weights, which an adapter of rank 33") as raised:
        tuned(compress, open_model(tmp_path / "model"), recipes(rank=33)["lora"], sequences_NT)
    assert raised.value.field == "rank"


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    byte_tokenizer(directory)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    return directory


def test_training_reads_the_text_in_windows_once_or_as_often_as_it_may(tokenizer_dir: Path, tmp_path: Path) -> None:
    text = save_text(tmp_path / "text.txt", 5000)
    tokenizer = data.load_tokenizer(tokenizer_dir, None)

    def read(**settings: Any) -> data.TokenBlocks:
        stage = Lora(**{"batch_size": 2, "sequence_length": 100, "rank": 1} | settings)
        return data.training_blocks(text, stage, 1, tokenizer, 272, 256)

    tokens = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    windows = [tokens[start : start + 100] for start in range(0, len(tokens) - 99, 100)]
    half = len(windows) // 4 * 2
    once = read(tokens=half * 100 + 99)
    assert once.tokens_NT.shape == (half, 100)
    rows = once.tokens_NT.tolist()
    assert all(row in windows for row in rows)
    assert len({tuple(row) for row in rows}) == half
    assert once.warnings == ()
    again = read(tokens=4 * half * 100, repeats=3)
    assert again.tokens_NT[:half].tolist() == rows
    seen = [windows.index(row) for row in again.tokens_NT.tolist()]
    assert sorted(seen[: len(windows)]) == list(range(len(windows)))
    # Another order the second time.
    assert seen[len(windows) :] != seen[: len(seen) - len(windows)]
    assert "times" in again.warnings[0]
    assert read(tokens=half * 100, seed=1).tokens_NT.tolist() != rows
    with pytest.raises(CalibrationTooShort, match=rf"has {len(tokens):,} tokens, {len(windows)} such") as raised:
        read(tokens=4 * half * 100)
    assert raised.value.field == "recipe.1.tokens"
    assert f"Lower tokens to {len(windows) * 100:,}" in raised.value.detail
