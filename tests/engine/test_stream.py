"""The one-pass stream: its results against a plain loop over layers, pauses against reruns, resume against no stop."""

import errno
import itertools
import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.engine.conftest import CPU, Compressor, shard_bytes
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from paredown.contracts.job import Calibration
from paredown.contracts.recipes import Gptq, Magnitude, Rtn, Stage, Wanda
from paredown.engine import block, checkpoint
from paredown.engine.architectures import Skeleton, architecture_of
from paredown.engine.checkpoint import Checkpoint
from paredown.engine.errors import DiskFull, Drained, NanFound
from paredown.engine.method import LinearWeight
from paredown.engine.methods import METHODS
from paredown.engine.statistics import InputStatistics, Statistic
from paredown.engine.stream import compress_model
from paredown.engine.weights import ModelFiles, open_model

CHAIN: tuple[Stage, ...] = (Wanda(sparsity=0.5), Gptq(bits=4, group_size=32))
# Whose blocks `plain_loop` can go through.
LOOPED = ["llama", "mistral", "qwen3", "gpt2", "gemma3", "gpt_neox", "bloom", "falcon-new"]
pytestmark = pytest.mark.usefixtures("small_batches")


def plain_loop(
    directory: Path, recipe: tuple[Stage, ...], tokens_NT: Tensor, asymmetry: float = 0
) -> dict[str, Tensor]:
    """The same recipe with whole forwards of the whole model: one for each group of linears, in order of execution."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    architecture = architecture_of(model.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                name.removesuffix(".weight").removeprefix(f"{architecture.blocks}.").partition(".")[2]
                not in architecture.linears
            ):
                # The artifact stores all else in 16 bits, and calibration runs on what the artifact will be.
                parameter.copy_(parameter.bfloat16().float())
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).float()
    results: dict[str, Tensor] = {}
    for index, _ in enumerate(model.get_submodule(architecture.blocks)):
        for group in architecture.groups:
            names = [f"{architecture.blocks}.{index}.{name}" for name in group]
            inputs_TI = entering(model, names[0], tokens_NT)
            needs = {Statistic.HESSIAN, Statistic.SHIFT} if asymmetry else {Statistic.HESSIAN}
            gathered = InputStatistics(names[0], inputs_TI.shape[1], needs, CPU)
            gathered.add(inputs_TI, entering(base, names[0], tokens_NT) if asymmetry else None)
            gathered.complete()
            for name in names:
                weight = model.get_parameter(f"{name}.weight")
                target = LinearWeight(name, architecture.oriented(weight.detach()).clone().contiguous(), torch.bfloat16)
                if asymmetry:
                    target.aim(gathered.toward_base(target.weight_OI, asymmetry))
                for stage in recipe:
                    METHODS[stage.method].compress(target, gathered, stage)
                results[f"{name}.weight"] = architecture.oriented(target.weight_OI)
                with torch.no_grad():
                    weight.copy_(results[f"{name}.weight"].bfloat16().float())
    return results


def entering(model: nn.Module, linear: str, tokens_NT: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = model.get_submodule(linear).register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].flatten(0, -2))
    )
    with torch.no_grad():
        model(input_ids=tokens_NT)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("family", LOOPED)
def test_it_equals_a_plain_loop_over_layers(
    family: str,
    tiny: Callable[[str], ModelFiles],
    model_dir: Callable[[str], Path],
    compress: Compressor,
    tokens_NT: Tensor,
) -> None:
    """Truly sequential: in the loop each layer's inputs come from the compressed layers before it."""
    result = compress(tiny(family), CHAIN, tokens_NT)
    expected = plain_loop(model_dir(family), CHAIN, tokens_NT)
    assert set(expected) == {f"{name}.weight" for name in result.linear_names}
    for name, weight in expected.items():
        # Sums in another order move a few weights over the middle of two grid points.
        differing = (result.tensor(name).float() - weight).abs() > 1e-6
        assert float(differing.float().mean()) < 0.01, name


def test_a_later_layer_sees_the_error_of_earlier_ones(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    files = tiny("llama")
    whole = compress(files, (Wanda(sparsity=0.5),), tokens_NT)
    late = compress(files, (Wanda(sparsity=0.5, skip=("*.self_attn.*", "*.layers.0.*")),), tokens_NT, "late")
    name = "model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(whole.tensor(name), late.tensor(name))


@pytest.mark.parametrize("recipe", [CHAIN, (Wanda(pattern="2:4"),), (Gptq(activation_order=False, group_size=32),)])
@pytest.mark.parametrize("asymmetry", [0, 0.5])
@pytest.mark.parametrize("family", ["llama-tied", "mistral", "opt", "gpt2"])
def test_reruns_give_the_bytes_of_pauses(
    family: str,
    asymmetry: float,
    recipe: tuple[Stage, ...],
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    tmp_path: Path,
) -> None:
    calibration = Calibration(asymmetry=asymmetry)
    compress(tiny(family), recipe, tokens_NT, "paused", calibration=calibration)
    compress(tiny(family), recipe, tokens_NT, "rerun", calibration=calibration, pausing=False)
    assert shard_bytes(tmp_path / "paused") == shard_bytes(tmp_path / "rerun")


def test_each_linear_runs_once(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    plain = nn.Linear.forward

    def counted(self: nn.Linear, inputs: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(self, inputs)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    compress(tiny("llama"), (Gptq(group_size=32),), tokens_NT)
    assert calls == 4 * 3 * 7, "four micro-batches, three blocks, seven linears"


def test_statistics_are_gathered_only_as_far_as_methods_need_them(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[InputStatistics] = []

    def recorded(*args: object) -> InputStatistics:
        made.append(InputStatistics(*args))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(block, "InputStatistics", recorded)
    compress(tiny("llama"), (Wanda(),), tokens_NT)
    assert len(made) == 3 * 4, "one for each input, not for each linear"
    assert not any(statistics.has_hessian for statistics in made)
    assert all(statistics.num_tokens == tokens_NT.numel() for statistics in made)


def test_a_recipe_without_calibration_runs_no_forward(
    tiny: Callable[[str], ModelFiles], compress: Compressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "__call__", lambda *_args, **_options: pytest.fail("a forward ran"))
    result = compress(tiny("qwen2"), (Magnitude(pattern="2:4"), Rtn(group_size=32)), None)
    assert len(result.layers) == 3 * 7


def test_bfloat16_forwards_compress_nearly_as_well(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    full = compress(tiny("llama"), (Gptq(group_size=32),), tokens_NT, "full")
    half = compress(tiny("llama"), (Gptq(group_size=32),), tokens_NT, "half", dtype=torch.bfloat16)
    for exact, rough in zip(full.layers, half.layers, strict=True):
        assert exact.error is not None
        assert rough.error == pytest.approx(exact.error, rel=0.1)


def asked_before(index: int) -> Callable[[], bool]:
    """Asks for a drain when the run is about to start a block."""
    boundaries = itertools.count()
    return lambda: next(boundaries) == index


@pytest.mark.parametrize(("recipe", "asymmetry"), [(CHAIN, 0), (CHAIN, 0.5), ((Rtn(group_size=32),), 0)])
@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_drained_run_goes_on_to_the_same_bytes(
    stop_after: int,
    asymmetry: float,
    recipe: tuple[Stage, ...],
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    tmp_path: Path,
) -> None:
    calibration = Calibration(asymmetry=asymmetry)
    compress(tiny("qwen2"), recipe, tokens_NT, "whole", calibration=calibration)
    done: list[int] = []

    def note(finished: int, _of: int) -> None:
        done.append(finished)

    with pytest.raises(Drained):
        compress(
            tiny("qwen2"),
            recipe,
            tokens_NT,
            "parts",
            calibration=calibration,
            on_progress=note,
            should_drain=asked_before(stop_after),
        )
    assert done == list(range(stop_after + 1)), "what was computed is durable"
    done.clear()
    result = compress(tiny("qwen2"), recipe, tokens_NT, "parts", calibration=calibration, on_progress=note)
    assert done == list(range(stop_after, 4)), "finished blocks are not done again"
    assert shard_bytes(tmp_path / "parts") == shard_bytes(tmp_path / "whole")
    assert len(result.layers) == 3 * 7


def test_a_block_is_written_while_the_next_is_computed(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = [threading.Event() for _ in range(3)]
    save, construct = Checkpoint.save, block.BlockRun.__init__

    def starting(
        self: block.BlockRun, files: ModelFiles, skeleton: Skeleton, index: int, *args: Any, **more: Any
    ) -> None:
        started[index].set()
        construct(self, files, skeleton, index, *args, **more)

    def saving(self: Checkpoint, index: int, *args: Any) -> None:
        assert index == 2 or started[index + 1].wait(60)
        save(self, index, *args)

    monkeypatch.setattr(block.BlockRun, "__init__", starting)
    monkeypatch.setattr(Checkpoint, "save", saving)
    compress(tiny("llama"), CHAIN, tokens_NT)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_block_that_finds_no_room_on_the_disk_ends_the_run(
    failing: int,
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(tensors: Any, path: Path, metadata: Any) -> None:
        if path.name == f"block-{failing:05d}.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DiskFull):
        compress(tiny("llama"), CHAIN, tokens_NT)
    assert Checkpoint(tmp_path / "work", "test", 3, sequential=True).finished == set(range(failing))


def test_a_failure_beside_a_full_disk_tells_of_both(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, construct = threading.Event(), block.BlockRun.__init__

    def starting(
        self: block.BlockRun, files: ModelFiles, skeleton: Skeleton, index: int, *args: Any, **more: Any
    ) -> None:
        if index == 1:
            begun.set()
            raise NanFound("as if")
        construct(self, files, skeleton, index, *args, **more)

    def saving(*_: object) -> None:
        assert begun.wait(60)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(block.BlockRun, "__init__", starting)
    monkeypatch.setattr(Checkpoint, "save", saving)
    with pytest.raises(NanFound) as caught:
        compress(tiny("llama"), CHAIN, tokens_NT)
    assert any("No space left" in note for note in caught.value.__notes__)


def test_another_identity_starts_afresh(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    compress(tiny("llama"), (Gptq(bits=3, group_size=32),), tokens_NT, "work", identity="three bits")
    done: list[int] = []
    compress(
        tiny("llama"),
        (Gptq(bits=4, group_size=32),),
        tokens_NT,
        "work",
        identity="four bits",
        on_progress=lambda finished, _: done.append(finished),
    )
    assert done == [0, 1, 2, 3]
    compress(tiny("llama"), (Gptq(bits=4, group_size=32),), tokens_NT, "fresh")
    assert shard_bytes(tmp_path / "work") == shard_bytes(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("damaged", "left"),
    [
        ("block-00000.safetensors", 0),  # all later blocks saw its error
        ("block-00001.safetensors", 1),  # goes back to the hidden states that enter it
        ("hidden-00002.safetensors", 1),
        ("journal.json", 0),
    ],
)
def test_what_is_damaged_is_redone_and_never_trusted(
    damaged: str,
    left: int,
    tiny: Callable[[str], ModelFiles],
    compress: Compressor,
    tokens_NT: Tensor,
    tmp_path: Path,
) -> None:
    compress(tiny("llama"), CHAIN, tokens_NT, "whole")
    done: list[int] = []

    def note(finished: int, _of: int) -> None:
        done.append(finished)

    with pytest.raises(Drained):
        compress(tiny("llama"), CHAIN, tokens_NT, "parts", should_drain=asked_before(2))
    path = tmp_path / "parts" / damaged
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done.clear()
    compress(tiny("llama"), CHAIN, tokens_NT, "parts", on_progress=note)
    assert done[0] == left
    assert shard_bytes(tmp_path / "parts") == shard_bytes(tmp_path / "whole")


def _child(progress: Connection, directory: Path, work_dir: Path, tokens_NT: Tensor) -> None:
    compress_model(
        open_model(directory),
        CHAIN,
        tokens_NT,
        device=CPU,
        dtype=torch.float32,
        work_dir=work_dir,
        identity="test",
        on_progress=lambda done, _: progress.send(done),
        should_drain=lambda: False,
    )


@pytest.mark.faults
def test_a_killed_run_goes_on_to_the_same_bytes(
    model_dir: Callable[[str], Path], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    directory = model_dir("mistral")
    begun = time.monotonic()
    compress(open_model(directory), CHAIN, tokens_NT, "whole")
    one_block = (time.monotonic() - begun) / 3
    chance = random.Random(0)
    # A fork has torch loaded already, and with one thread there are no others to lose.
    context = multiprocessing.get_context("fork")
    for attempt in range(6):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, directory, tmp_path / "parts", tokens_NT))
        process.start()
        sender.close()
        receiver.recv()
        if attempt < 5:
            # Somewhere within the next block or so: at a forward, a solve, or a write.
            time.sleep(chance.uniform(0, 1.3 * one_block))
            process.kill()
        process.join()
    assert process.exitcode == 0
    assert shard_bytes(tmp_path / "parts") == shard_bytes(tmp_path / "whole")


def test_nan_in_a_weight_names_it(
    model_dir: Callable[[str], Path], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir("llama"))
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 4] = float("inf")
    model.save_pretrained(tmp_path / "bad")
    for recipe in ((Rtn(group_size=32),), CHAIN):
        with pytest.raises(NanFound, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
            compress(open_model(tmp_path / "bad"), recipe, tokens_NT)


def test_nan_in_activations_names_the_layer(
    model_dir: Callable[[str], Path], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir("llama"), dtype=torch.float32)
    with torch.no_grad():
        # Finite weights whose products are not.
        model.get_parameter("model.layers.1.input_layernorm.weight")[:] = 3e38
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(NanFound, match=r"model\.layers\.1\.self_attn\.q_proj"):
        compress(open_model(tmp_path / "bad"), CHAIN, tokens_NT)


def test_a_failure_leaves_no_forward_behind(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paused forwards are unwound, hooks and all, and the same work directory can go on."""

    def broken(_self: InputStatistics) -> None:
        raise NanFound("as if")

    with monkeypatch.context() as patch:
        patch.setattr(InputStatistics, "complete", broken)
        with pytest.raises(NanFound):
            compress(tiny("llama"), CHAIN, tokens_NT)
    compress(tiny("llama"), CHAIN, tokens_NT)


def test_hidden_states_that_leave_the_last_block_are_not_kept(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    compress(tiny("llama"), CHAIN, tokens_NT)
    checkpoint = Checkpoint(tmp_path / "work", "test", 3, sequential=True)
    assert checkpoint.finished == {0, 1, 2}
    assert {path.name for path in (tmp_path / "work").iterdir()} == {
        "journal.json",
        *(f"block-{index:05d}.safetensors" for index in range(3)),
        "hidden-00001.safetensors",
        "hidden-00002.safetensors",
    }
