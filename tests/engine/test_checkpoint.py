"""What a checkpoint keeps, and what it drops."""

import errno
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CPU

from paredown.contracts.report import LayerReport
from paredown.engine import checkpoint
from paredown.engine.checkpoint import Checkpoint, identity_hash
from paredown.engine.errors import DiskFull
from paredown.engine.quantized import QuantizedLinear

REPORT = LayerReport(name="block.linear", weights=8, zeros=1, bits=4.5, error=0.1)


def grid() -> QuantizedLinear:
    return QuantizedLinear(
        codes_OI=torch.tensor([[0, 7, 15, 3], [1, 2, 3, 4]], dtype=torch.uint8),
        scales_OG=torch.tensor([[0.5, 1.0], [2.0, 4.0]], dtype=torch.bfloat16),
        zeros_OG=torch.tensor([[0, 7], [8, 15]], dtype=torch.uint8),
        bits=4,
        group_size=2,
        symmetric=False,
    )


def save(target: Checkpoint, block: int) -> None:
    dense = {"block.norm.weight": torch.full((4,), float(block))}
    hidden = [torch.full((2, 3, 4), float(block)), torch.full((1, 3, 4), -float(block))]
    target.save(block, dense, {"block.linear": grid()}, (REPORT,), hidden)


def test_a_block_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save(Checkpoint(tmp_path, "id", 4, sequential=True), 0)
    again = Checkpoint(tmp_path, "id", 4, sequential=True)
    assert again.finished == {0}
    assert again.layers(0) == (REPORT,)
    shard = again.block(0)
    assert shard.dense_names == {"block.norm.weight"}
    assert shard.quantized_names == {"block.linear"}
    assert torch.equal(shard.dense("block.norm.weight"), torch.zeros(4))
    found, expected = shard.quantized("block.linear"), grid()
    assert torch.equal(found.codes_OI, expected.codes_OI)
    assert torch.equal(found.scales_OG, expected.scales_OG)
    assert found.zeros_OG is not None
    assert expected.zeros_OG is not None
    assert torch.equal(found.zeros_OG, expected.zeros_OG)
    assert (found.bits, found.group_size, found.symmetric) == (4, 2, False)
    states = again.hidden(1, CPU)
    assert states is not None
    assert [state.shape[0] for state in states] == [2, 1]
    assert again.hidden(0, CPU) is None


def test_only_the_last_two_hidden_states_are_kept(tmp_path: Path) -> None:
    target = Checkpoint(tmp_path, "id", 9, sequential=True)
    for block in range(4):
        save(target, block)
    assert sorted(path.name for path in tmp_path.glob("hidden-*")) == [
        "hidden-00003.safetensors",
        "hidden-00004.safetensors",
    ]


def test_without_calibration_a_damaged_block_is_redone_alone(tmp_path: Path) -> None:
    target = Checkpoint(tmp_path, "id", 3, sequential=False)
    for block in range(3):
        target.save(block, {"norm": torch.ones(4)}, {}, (REPORT,), None)
    path = tmp_path / "block-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert Checkpoint(tmp_path, "id", 3, sequential=False).finished == {0, 2}
    assert not path.exists()


def test_files_of_a_broken_off_write_are_removed(tmp_path: Path) -> None:
    target = Checkpoint(tmp_path, "id", 3, sequential=True)
    save(target, 0)
    (tmp_path / "block-00001.partial").write_bytes(b"half")
    # Renamed, but the process ended before the journal took it in.
    (tmp_path / "block-00001.safetensors").write_bytes(b"whole, but unknown")
    (tmp_path / "other-file.json").write_text("not ours")
    assert Checkpoint(tmp_path, "id", 3, sequential=True).finished == {0}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "block-00000.safetensors",
        "hidden-00001.safetensors",
        "journal.json",
        "other-file.json",
    ]


def test_a_journal_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    target = Checkpoint(tmp_path / "work", "id", 3, sequential=True)
    save(target, 0)
    journal = tmp_path / "work" / "journal.json"
    journal.write_text(journal.read_text().replace("block-00000.safetensors", "../block-00000.safetensors"))
    assert Checkpoint(tmp_path / "work", "id", 3, sequential=True).finished == frozenset()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: os error 28")]
)
def test_a_full_disk_has_a_name_and_keeps_what_was_finished(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Checkpoint(tmp_path, "id", 3, sequential=True)
    save(target, 0)

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(DiskFull) as caught:
            save(target, 1)
    assert caught.value.retryable
    assert Checkpoint(tmp_path, "id", 3, sequential=True).finished == {0}


def test_an_identity_depends_on_values_not_on_their_order() -> None:
    assert identity_hash({"a": 1, "b": 2}) == identity_hash({"b": 2, "a": 1})
    assert identity_hash({"a": 1}) != identity_hash({"a": 2})
