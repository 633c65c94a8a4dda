"""Finished blocks on disk, and the hidden states that enter the next one: what a resumed run starts from.

A file counts only once it was written, synchronized, renamed and entered, with its hash, in the journal, which is
replaced in one step. Whatever fails its hash on resume is redone; it is never trusted.

    work_dir/journal.json              identity, finished blocks, hidden states
    work_dir/block-00007.safetensors   one finished block: dense tensors in the storage dtype, codes, scales, factors
    work_dir/hidden-00008.safetensors  hidden states entering block 8, verbatim; the last two are kept
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from paredown.contracts.artifact import sha256_file
from paredown.contracts.job import Contract
from paredown.contracts.report import LayerReport
from paredown.engine.activations import ActivationGrid
from paredown.engine.compact import FORMS
from paredown.engine.errors import DiskFull, is_disk_full
from paredown.engine.stored import StoredLinear

_JOURNAL = "journal.json"
_KEPT_HIDDEN = 2


class _File(Contract):
    name: str = Field(pattern=r"^[a-z]+-\d{5}\.safetensors$")
    size_bytes: int
    sha256: str


class _Block(Contract):
    file: _File
    layers: tuple[LayerReport, ...]


class _Journal(Contract):
    # Of another layout of blocks' files than this one's, nothing is taken over.
    version: Literal[2] = 2
    identity: str
    blocks: dict[int, _Block] = {}
    hidden: dict[int, _File] = {}
    # Of all the fields above: a flipped bit in a report's figure would parse.
    sha256: str = ""

    def hash(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"sha256"}).encode()).hexdigest()


class Checkpoint:
    """The journal of one run in one directory. Opening it drops what belongs to another run or is damaged."""

    def __init__(self, work_dir: Path, identity: str, num_blocks: int, *, sequential: bool) -> None:
        """`sequential`: each block depends on the ones before, so a damaged one takes all later ones with it."""
        self.directory = work_dir
        self._num_blocks = num_blocks
        work_dir.mkdir(parents=True, exist_ok=True)
        self._journal = self._valid(_read(work_dir / _JOURNAL), identity, sequential)
        self._remove_unknown()

    @property
    def finished(self) -> frozenset[int]:
        return frozenset(self._journal.blocks)

    def layers(self, block: int) -> tuple[LayerReport, ...]:
        return self._journal.blocks[block].layers

    def block(self, index: int) -> "BlockShard":
        return BlockShard(self.directory / self._journal.blocks[index].file.name)

    def hidden(self, block: int, device: torch.device) -> list[Tensor] | None:
        """Hidden states entering a block, one tensor for each micro-batch, or None where they were not saved."""
        file = self._journal.hidden.get(block)
        if file is None:
            return None
        with safe_open(self.directory / file.name, "pt", device=str(device)) as stored:
            return [stored.get_tensor(f"{index:05d}") for index in range(len(stored.keys()))]

    def save(
        self,
        block: int,
        dense: Mapping[str, Tensor],
        quantized: Mapping[str, StoredLinear],
        layers: tuple[LayerReport, ...],
        hidden: list[Tensor] | None,
    ) -> None:
        """Make one block durable, with the hidden states that enter the next. Raises DiskFull."""
        tensors, metadata = _pack(dense, quantized)
        shard = self._write(f"block-{block:05d}.safetensors", tensors, metadata)
        blocks = {**self._journal.blocks, block: _Block(file=shard, layers=layers)}
        kept = dict(self._journal.hidden)
        if hidden is not None:
            states = {f"{index:05d}": state for index, state in enumerate(hidden)}
            kept[block + 1] = self._write(f"hidden-{block + 1:05d}.safetensors", states, {})
            kept = dict(sorted(kept.items())[-_KEPT_HIDDEN:])
        self._journal = self._journal.model_copy(update={"blocks": blocks, "hidden": kept})
        self._write_journal()
        self._remove_unknown()

    def _write(self, name: str, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> _File:
        path = self.directory / name
        partial = path.with_suffix(".partial")
        try:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, metadata)
            _synchronize(partial)
        except Exception as error:
            raise _as_disk_full(error, self.directory) from error
        partial.rename(path)
        return _File(name=name, size_bytes=path.stat().st_size, sha256=sha256_file(path))

    def _write_journal(self) -> None:
        path = self.directory / _JOURNAL
        partial = path.with_suffix(".partial")
        try:
            partial.write_text(self._journal.model_copy(update={"sha256": self._journal.hash()}).model_dump_json())
            _synchronize(partial)
        except OSError as error:
            raise _as_disk_full(error, self.directory) from error
        partial.rename(path)
        _synchronize(self.directory)

    def _valid(self, journal: _Journal | None, identity: str, sequential: bool) -> _Journal:
        if journal is None or journal.identity != identity:
            return _Journal(identity=identity)
        good = {index: block for index, block in journal.blocks.items() if self._intact(block.file)}
        hidden = {index: file for index, file in journal.hidden.items() if self._intact(file)}
        if sequential:
            prefix = next(index for index in range(len(journal.blocks) + 1) if index not in good)
            # Block 0 starts from the tokens; a later one only from hidden states that were saved.
            start = max(index for index in (0, *hidden, self._num_blocks) if index <= prefix)
            good = {index: block for index, block in good.items() if index < start}
            hidden = {index: file for index, file in hidden.items() if index <= start}
        return _Journal(identity=identity, blocks=good, hidden=hidden)

    def _intact(self, file: _File) -> bool:
        path = self.directory / file.name
        return path.is_file() and path.stat().st_size == file.size_bytes and sha256_file(path) == file.sha256

    def _remove_unknown(self) -> None:
        known = {block.file.name for block in self._journal.blocks.values()}
        known |= {file.name for file in self._journal.hidden.values()}
        for pattern in ("block-*", "hidden-*", "*.partial"):
            for path in self.directory.glob(pattern):
                if path.name not in known:
                    path.unlink()


class BlockShard:
    """One finished block on disk, mapped only while a tensor is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, "pt") as file:
            self._forms: dict[str, dict[str, Any]] = json.loads((file.metadata() or {}).get("forms", "{}"))
            self._stored = frozenset(file.keys())

    @property
    def dense_names(self) -> frozenset[str]:
        """Parameters that are stored dense."""
        return frozenset(name.removeprefix("dense.") for name in self._stored if name.startswith("dense."))

    @property
    def quantized_names(self) -> frozenset[str]:
        """Linears (without `.weight`) that are not stored dense."""
        return frozenset(self._forms)

    def dense(self, name: str) -> Tensor:
        return self._read(f"dense.{name}")

    def quantized(self, linear: str) -> StoredLinear:
        form = self._forms[linear]
        tensors = {name: self._read(f"{name}.{linear}") for name in form["tensors"]}
        return FORMS[form["kind"]](**tensors, **form["settings"])

    def activations(self, linear: str) -> ActivationGrid | None:
        """How the linear's inputs are rounded, where they are."""
        form = self._forms[linear]
        kind = form["settings"].get("activation_type")
        scale = self._read(f"activation_scale.{linear}") if "activation_scale" in form["tensors"] else None
        return kind and ActivationGrid(kind, scale)

    def _read(self, key: str) -> Tensor:
        with safe_open(self._path, "pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor


def identity_hash(*parts: Any) -> str:
    """SHA-256 over JSON values: what must be equal for a checkpoint to be resumed."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _pack(
    dense: Mapping[str, Tensor], quantized: Mapping[str, StoredLinear]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {f"dense.{name}": tensor for name, tensor in dense.items()}
    forms: dict[str, dict[str, Any]] = {}
    for linear, stored in quantized.items():
        # Linears that share an input share tensors of it, which a file may not.
        tensors |= {f"{name}.{linear}": tensor.clone() for name, tensor in stored.tensors.items()}
        forms[linear] = {"kind": stored.kind, "tensors": list(stored.tensors), "settings": stored.settings}
    return tensors, {"forms": json.dumps(forms, sort_keys=True)}


def _read(path: Path) -> _Journal | None:
    """None where it is absent or damaged: then nothing in the directory can be trusted."""
    try:
        journal = _Journal.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return journal if journal.hash() == journal.sha256 else None


def _synchronize(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_disk_full(error: Exception, directory: Path) -> Exception:
    if not is_disk_full(error):
        return error
    return DiskFull(f"The disk of {directory} is full; free some space, then run again: finished blocks are kept.")
