"""Bonsai: by hand, on models whose answer is known, against a whole model with silent units, and through every stop."""

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import CPU, Compressor, shard_bytes
from tests.engine.test_depth import deep_model, measured
from tests.engine.test_width import silence
from torch import Tensor

from paredown.contracts.recipes import Bonsai, Wanda
from paredown.engine.errors import Drained, NanFound, RecipeUnfit
from paredown.engine.evaluation.perplexity import perplexity
from paredown.engine.methods import bonsai
from paredown.engine.weights import ModelFiles, open_model

pytestmark = pytest.mark.usefixtures("small_batches")
# The tiny llama: 3 blocks of 128 channels, 2 key-value heads and 4 query heads of 16.
CUT = Bonsai(mlp_share=0.5, head_groups=1, submodels=10, samples=3, rounds=2)


def test_a_pair_misses_complementary_units_of_least_prior() -> None:
    prior_N = torch.tensor([5.0, 0.1, 4.0, 0.2, 0.3, 9.0, 0.0, 0.4])
    present_N = torch.ones(8, dtype=torch.bool)
    present_N[6] = False
    drawn = [bonsai.draw(prior_N, present_N, 2, torch.Generator().manual_seed(seed)) for seed in range(20)]
    for first_N, second_N in drawn:
        assert int(first_N.sum()) == int(second_N.sum()) == 2
        assert (first_N | second_N).nonzero().flatten().tolist() == [1, 3, 4, 7]
    assert len({tuple(first_N.tolist()) for first_N, _ in drawn}) > 1
    # More than half: all may go.
    first_N, second_N = bonsai.draw(prior_N, present_N, 5, torch.Generator().manual_seed(0))
    assert (int(first_N.sum()), int(second_N.sum())) == (5, 2)


def test_worth_is_what_losses_say_where_pairs_are_many() -> None:
    generator = torch.Generator().manual_seed(0)
    truth_F = torch.tensor([0.1, 0.4, 0.2, 0.9, 0.3, 0.6], dtype=torch.float64)
    missing_PF = torch.randint(2, (64, 6), generator=generator).double() * 2 - 1
    found_F, more = bonsai.worth(missing_PF, torch.full((6,), 0.5), missing_PF @ truth_F)
    assert more
    # In the prior's unit: the order and the ratios are those of the truth.
    assert torch.allclose(found_F / found_F.sum(), truth_F / truth_F.sum(), atol=0.01)


def test_losses_that_tell_nothing_leave_the_prior() -> None:
    prior_F = torch.tensor([0.1, 0.4, 0.5])
    missing_PF = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
    # No difference; one pair, which nothing confirms.
    for pairs, loss_P in ((missing_PF, torch.zeros(2)), (missing_PF[:1], torch.tensor([3.0]))):
        found_F, more = bonsai.worth(pairs, prior_F, loss_P)
        assert not more
        assert torch.allclose(found_F.float(), prior_F)


@pytest.mark.parametrize(("heads", "going"), [(8, 2), (3, 1)])
def test_losses_that_the_prior_foretells_leave_its_order(heads: int, going: int) -> None:
    """With few units of much worth and a little noise, as heads are: nothing is read into what the prior explains."""
    right = count = 0
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        prior_LN = torch.rand(30, heads, generator=generator) + 0.2
        whole_N = torch.ones(heads, dtype=torch.bool)
        may_go = [bonsai.least(prior_N, whole_N, 2 * going) for prior_N in prior_LN]
        prior_F = torch.cat([prior_N[at] for prior_N, at in zip(prior_LN, may_go, strict=True)])
        rows = []
        for _ in range(16):
            pairs = [bonsai.draw(prior_N, whole_N, going, generator) for prior_N in prior_LN]
            both = zip(pairs, may_go, strict=True)
            rows.append(torch.cat([first_N[at].float() - second_N[at].float() for (first_N, second_N), at in both]))
        missing_PF = torch.stack(rows)
        loss_P = missing_PF @ prior_F
        loss_P += 0.03 * loss_P.std() * torch.randn(16, generator=generator)
        found_F, _ = bonsai.worth(missing_PF, prior_F, loss_P)
        sizes = [len(at) for at in may_go]
        for found_N, prior_N in zip(found_F.split(sizes), prior_F.split(sizes), strict=True):
            count += 1
            right += set(found_N.argsort()[:going].tolist()) == set(prior_N.argsort()[:going].tolist())
    assert right > 0.97 * count


def test_what_adds_nothing_is_worth_less_than_what_losses_speak_against() -> None:
    missing_PF = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [1.0, 1.0, 1.0], [1.0, -1.0, -1.0]]).repeat(4, 1)
    found_F, more = bonsai.worth(missing_PF, torch.tensor([0.5, 0.0, 0.5]), missing_PF @ torch.tensor([-1.0, 0.0, 2.0]))
    assert more
    assert 0 == found_F[1] < found_F[0] < found_F[2]


@pytest.mark.parametrize("submodels", [0, 10])
def test_units_that_do_nothing_are_those_that_go(
    submodels: int, compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model", blocks=3)
    idle = [
        (torch.randperm(128, generator=torch.Generator().manual_seed(block))[:64].tolist(), [block % 2])
        for block in range(3)
    ]
    silence(model, idle)
    model.save_pretrained(tmp_path / "model")
    stage = CUT.model_copy(update={"submodels": submodels})
    result = compress(open_model(tmp_path / "model"), (stage,), tokens_NT)
    assert "went 0.0% of all importance" in result.stages[0].summary
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    assert found == pytest.approx(measured(model, tokens_NT), rel=1e-5)


def test_no_more_rounds_than_units_go(
    tiny: Callable[[str], ModelFiles], compress: Compressor, tokens_NT: Tensor
) -> None:
    one = compress(tiny("llama"), (Bonsai(mlp_share=0, head_groups=1, submodels=4, samples=2),), tokens_NT, "one")
    several = Bonsai(mlp_share=0, head_groups=1, submodels=4, samples=2, rounds=3)
    assert compress(tiny("llama"), (several,), tokens_NT, "several").stages == one.stages


def test_submodels_decide_where_the_prior_cannot(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prior finds all heads alike: those go whose loss costs least, whatever goes from other blocks."""
    model = deep_model(tmp_path / "model", blocks=3)
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(bonsai, "_added", lambda _linear, _energy, present_LN: torch.ones(present_LN.shape[1]))
    stage = Bonsai(mlp_share=0, head_groups=1, submodels=64, samples=7)
    result = compress(open_model(tmp_path / "model"), (stage,), tokens_NT)
    assert "in 1 of 1 rounds they told more than the prior alone" in result.stages[0].summary
    found, _ = perplexity(result, tokens_NT, device=CPU, dtype=torch.float32)
    every: dict[tuple[int, ...], float] = {}
    for heads in product(range(2), repeat=3):
        model.load_state_dict(whole)
        silence(model, [([], [head]) for head in heads])
        every[heads] = measured(model, tokens_NT)
    # From each block goes the head without which all choices of the others lose least on average.
    best = tuple(
        min(range(2), key=lambda head: sum(math.log(value) for heads, value in every.items() if heads[block] == head))
        for block in range(3)
    )
    assert found == pytest.approx(every[best], rel=1e-5)
    assert found < sorted(every.values())[3]


def test_a_submodels_loss_is_that_of_the_model_with_silent_units(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no gradient is asked for on the way."""
    model = deep_model(tmp_path / "model", blocks=3)
    seen: list[tuple[bonsai.Present, float]] = []
    real = bonsai._Passes.losses

    def losses(passes: Any, submodels: Any) -> list[float]:
        found = real(passes, submodels)
        seen.extend(zip(submodels, found, strict=True))
        return found

    def no_gradient(*_given: Any, **_more: Any) -> None:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(bonsai._Passes, "losses", losses)
    with monkeypatch.context() as forbidden:
        forbidden.setattr(torch.autograd, "backward", no_gradient)
        forbidden.setattr(torch.autograd, "grad", no_gradient)
        stage = Bonsai(mlp_share=0.5, head_groups=1, submodels=10, samples=3)
        compress(open_model(tmp_path / "model"), (stage,), tokens_NT)
    assert len(seen) == 10
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    for present, loss in seen:
        model.load_state_dict(whole)
        gone = [
            (
                (~present["channels"][block]).nonzero().flatten().tolist(),
                (~present["heads"][block]).nonzero().flatten().tolist(),
            )
            for block in range(3)
        ]
        assert all((len(channels), len(heads)) == (64, 1) for channels, heads in gone)
        silence(model, gone)
        assert torch.tensor(loss).exp().item() == pytest.approx(measured(model, tokens_NT[:3]), rel=1e-4)


def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    deep_model(tmp_path / "model", blocks=3)
    files = open_model(tmp_path / "model")
    steps: list[float] = []
    whole = compress(
        files, (CUT, Wanda()), tokens_NT, "whole", on_progress=lambda done, total: steps.append(done / total)
    )
    assert steps == sorted(steps)
    assert len(set(steps)) > 18
    # In the prior's pass, between passes, within both waves of sub-models, in the second round, and in the last stage.
    for stop in (2, 3, 5, 6, 8, 9, 13, 17, 19):
        answers = iter([False] * stop)
        with pytest.raises(Drained):
            compress(files, (CUT, Wanda()), tokens_NT, f"{stop}", should_drain=lambda: next(answers, True))  # noqa: B023
        asked: list[bool] = []
        result = compress(files, (CUT, Wanda()), tokens_NT, f"{stop}", should_drain=lambda: bool(asked.append(False)))  # noqa: B023
        # Two rounds of three passes over three blocks, and the last stage's pass: what was done is not done again.
        assert len(asked) == 21 - stop
        assert result.stages == whole.stages
        assert shard_bytes(tmp_path / f"{stop}") == shard_bytes(tmp_path / "whole")


def test_hidden_states_that_are_not_finite_name_their_block(
    compress: Compressor, tokens_NT: Tensor, tmp_path: Path
) -> None:
    model = deep_model(tmp_path / "model", blocks=3)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").fill_(3e38)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(NanFound, match="leave block 1"):
        compress(open_model(tmp_path / "model"), (CUT,), tokens_NT)


def test_what_cannot_be_cut_is_refused(compress: Compressor, tokens_NT: Tensor, tmp_path: Path) -> None:
    deep_model(tmp_path / "model", blocks=2)
    with pytest.raises(RecipeUnfit, match="128 MLP channels and 2 key-value heads") as raised:
        compress(open_model(tmp_path / "model"), (Bonsai(head_groups=2),), tokens_NT)
    assert raised.value.field == "head_groups"
