"""Where families keep their parts, against transformers' own models and against the sizes that contracts know."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import FAMILIES, Compressor, random_model, unfolded
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BertConfig
from transformers.pytorch_utils import Conv1D

from paredown.contracts.families import MODEL_TYPES, shape_from_config
from paredown.contracts.recipes import Wanda
from paredown.engine.architectures import ARCHITECTURES, Skeleton, architecture_of
from paredown.engine.errors import ArchitectureUnsupported
from paredown.engine.weights import open_model


def test_every_family_of_the_contracts_has_an_architecture() -> None:
    assert set(ARCHITECTURES) == set(MODEL_TYPES.values())
    assert {model_type for model_type, _, _ in FAMILIES.values()} == set(MODEL_TYPES), "each has a tiny model here"


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_real_model(family: str) -> None:
    model = random_model(family)
    skeleton = Skeleton(model.config, torch.float32)
    expected = {name: parameter.shape for name, parameter in unfolded(model).items()}
    assert skeleton.parameter_shapes() == expected
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    blocks = [name for index in range(skeleton.num_blocks) for name in skeleton.block_names(index)]
    assert sorted(blocks + skeleton.outer_names()) == sorted(expected)
    linears = set(skeleton.all_linear_names())
    in_blocks = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(f"{skeleton.architecture.blocks}.")
    }
    in_blocks |= {name.removesuffix(".weight") for name in expected if ".experts." in name}
    # One row that decides on a whole expert: no method touches it.
    assert linears == {name for name in in_blocks if not name.endswith("shared_expert_gate")}
    low = Skeleton(model.config, torch.bfloat16)
    for name, buffer in AutoModelForCausalLM.from_config(model.config).named_buffers():
        # Computed at construction, in no file, and never in 16 bits.
        assert torch.equal(skeleton.model.get_buffer(name), buffer)
        assert torch.equal(low.model.get_buffer(name), buffer)


@pytest.mark.parametrize("family", FAMILIES)
def test_contracts_know_the_same_linears_by_their_sizes(family: str) -> None:
    model = random_model(family)
    shape = shape_from_config(model.config.to_dict())
    architecture = architecture_of(model.config)
    block = Skeleton(model.config, torch.float32).blocks[0]
    assert {linear.name for linear in shape.linears} == set(architecture.linears)
    skeleton = Skeleton(model.config, torch.float32)
    groups = [group for index, group in enumerate(architecture.groups) if skeleton.producer(index)]
    assert set(shape.scalable) == {name for group in groups for name in group}
    for linear in shape.linears:
        weight_OI = architecture.oriented(block.get_parameter(f"{linear.name}.weight"))
        assert tuple(weight_OI.shape) == (linear.out_features, linear.in_features)


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_follow_the_order_of_execution_and_share_their_input(
    family: str, model_dir: Callable[[str], Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_dir(family), dtype=torch.float32)
    skeleton = Skeleton(model.config, torch.float32)
    skeleton.put_from(unfolded(model).__getitem__, skeleton.parameter_shapes(), torch.device("cpu"))
    architecture = skeleton.architecture
    seen: list[tuple[str, torch.Tensor]] = []
    for name in architecture.linears:
        skeleton.blocks[0].get_submodule(name).register_forward_pre_hook(
            lambda _module, args, name=name: seen.append((name, args[0]))
        )
    tokens_BT = torch.arange(96).view(2, 48)
    with torch.no_grad():
        logits = skeleton.model(input_ids=tokens_BT).logits
        # Mixtures included: unfolded, they compute what transformers computes.
        torch.testing.assert_close(logits, model(input_ids=tokens_BT).logits, rtol=1e-4, atol=1e-4)
    position = {name: index for index, (name, _) in enumerate(seen)}
    inputs = dict(seen)
    groups = architecture.groups
    assert [name for name, _ in seen if any(name == group[0] for group in groups)] == [group[0] for group in groups]
    for group in groups:
        assert all(torch.equal(inputs[group[0]], inputs[name]) for name in group)
        assert position[group[0]] == min(position[name] for name in group), "the pause is at the first of them"


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ArchitectureUnsupported, match=r"'bert' is not supported.*gpt2.*llama"):
        architecture_of(BertConfig())


@pytest.mark.parametrize("family", ["llama-tied", "opt", "gpt2"])
def test_a_tied_head_follows_the_embedding(family: str) -> None:
    model = random_model(family)
    skeleton = Skeleton(model.config, torch.float32)
    parameters = dict(model.named_parameters())
    skeleton.load_outer(lambda name: parameters[name].detach(), torch.device("cpu"))
    embedding = skeleton.model.get_input_embeddings()
    assert skeleton.head.weight is embedding.weight
    assert torch.equal(embedding.weight, model.get_input_embeddings().weight.float())


def test_a_released_block_holds_nothing() -> None:
    model = random_model("qwen3")
    skeleton = Skeleton(model.config, torch.float32)
    parameters = dict(model.named_parameters())
    skeleton.put_from(lambda name: parameters[name].detach(), skeleton.block_names(1), torch.device("cpu"))
    assert not any(parameter.is_meta for parameter in skeleton.blocks[1].parameters())
    skeleton.release_block(1)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_leaves_its_input_as_it_was(family: str) -> None:
    """Hidden states are still being written to disk when the next block reads them."""
    model = random_model(family).eval()
    came: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in model.get_submodule(architecture_of(model.config).blocks):
        block.register_forward_pre_hook(lambda _block, args: came.append((args[0], args[0].clone())))
    with torch.inference_mode():
        model(input_ids=torch.arange(96).view(2, 48))
    assert len(came) == model.config.num_hidden_layers
    assert all(torch.equal(after, before) for after, before in came)


def test_bloom_calls_its_linears_whatever_order_its_configuration_wants(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    """Slices that are multiplied one by one would pass by the hooks of those who look at inputs."""
    model = random_model("bloom")
    model.config.update({"slow_but_exact": True, "pretraining_tp": 2})
    model.save_pretrained(tmp_path / "model")
    files = open_model(tmp_path / "model")
    result = compress(files, (Wanda(),), tokens_NT)
    assert {layer.zeros / layer.weights for layer in result.layers} == {0.5}
    assert files.config.slow_but_exact, "the artifact's configuration is the model's"
