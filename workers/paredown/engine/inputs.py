"""What a run reads before the work begins, and all that can be refused before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from paredown.contracts.families import ModelShape, UnsupportedArchitecture, shape_from_config
from paredown.contracts.job import Calibration, Format, automatic_format, format_refusal
from paredown.contracts.recipes import Stage, Training, shape_left
from paredown.contracts.work import WorkOrder
from paredown.engine import data
from paredown.engine.calibration import stored_blocks
from paredown.engine.checkpoint import identity_hash
from paredown.engine.errors import ArchitectureUnsupported, FormatRefused, NotAModel, OrderInvalid, RecipeUnfit
from paredown.engine.formats import checkpoints, compressed_tensors, gguf
from paredown.engine.formats.gguf_vocabulary import described_tokenizer
from paredown.engine.weights import ModelFiles, open_model


@dataclass(frozen=True)
class Inputs:
    """The model and the tokens of one run."""

    files: ModelFiles
    shape: ModelShape
    has_tokenizer: bool
    calibration: data.TokenBlocks | None
    evaluation: data.TokenBlocks | None
    # What each stage that trains is trained on, by its place in the recipe.
    training: dict[int, data.TokenBlocks]
    # Of each domain of the evaluation, in their order.
    domains: tuple[data.TokenBlocks, ...]
    warnings: tuple[str, ...]

    @cached_property
    def tokenizer(self) -> Any:
        """None where the model has none; read when it is asked for, and again after `release_tokenizer`."""
        return data.load_tokenizer(self.files.directory, self.files.gguf_file) if self.has_tokenizer else None

    def release_tokenizer(self) -> None:
        """While nothing asks for it: a large vocabulary takes tens of megabytes."""
        self.__dict__.pop("tokenizer", None)

    @property
    def first_token(self) -> int | None:
        return _first_token(self.tokenizer, self.shape)


def _first_token(tokenizer: Any, shape: ModelShape) -> int | None:
    """What every text must begin with. Without the token that begins a text, gemma predicts next to nothing."""
    return tokenizer.bos_token_id if tokenizer is not None and shape.family == "gemma" else None


def resolved_format(order: WorkOrder) -> Format:
    """Raises FormatRefused."""
    if order.format is Format.AUTO:
        return automatic_format(order.recipe)
    if refusal := format_refusal(order.format, order.recipe):
        _, reason = refusal
        raise FormatRefused(f"{reason[0].upper()}{reason[1:]}.", field="format")
    return order.format


def _calibration_of(order: WorkOrder) -> Calibration | None:
    """Its settings, where a stage needs them. Raises OrderInvalid."""
    if not any(stage.needs_calibration for stage in order.recipe):
        return None
    trains = any(isinstance(stage, Training) for stage in order.recipe)
    if order.calibration is None or (order.calibration_text is None and (trains or order.calibration_tokens is None)):
        raise OrderInvalid("A stage of the recipe needs calibration text, and the order names none.")
    if order.calibration.exclude_held_out and order.evaluation is None:
        raise OrderInvalid(
            "calibration.exclude_held_out keeps the evaluation's text apart, and there is no evaluation."
        )
    return order.calibration


def read_inputs(order: WorkOrder, output_format: Format) -> Inputs:
    files = open_model(order.model_dir, order.gguf_file)
    if output_format is Format.GGUF:
        files = gguf.prepared(files, order.recipe)
    try:
        shape = shape_from_config(files.config.to_dict())
    except UnsupportedArchitecture as error:
        raise ArchitectureUnsupported(f"{error}.", field="model") from error
    check_stages(order.recipe, shape)
    if output_format in (Format.GPTQ, Format.AWQ):
        files = checkpoints.prepared(files, output_format, shape_left(shape, order.recipe), order.recipe)
    if output_format is Format.COMPRESSED_TENSORS:
        compressed_tensors.check(files.config, order.recipe)
    calibrated = _calibration_of(order)
    if calibrated is not None and (reason := calibrated.refusal(shape)):
        raise RecipeUnfit(reason, field="calibration.asymmetry")
    if order.evaluation is not None and order.evaluation_text is None:
        raise OrderInvalid("The order asks for an evaluation and names no text for it.")

    warnings: list[str] = []
    tokenizer = None
    try:
        tokenizer = data.load_tokenizer(order.model_dir, order.gguf_file)
    except NotAModel as error:
        if calibrated or order.evaluation:
            raise
        warnings.append(f"{error.detail} The artifact has none either.")
    if output_format is Format.GGUF and tokenizer is not None and order.gguf_file is None:
        # Refused before any work; the description is wanted when the file is written.
        described_tokenizer(tokenizer)
    evaluation = None
    first_token = _first_token(tokenizer, shape)
    if order.evaluation and order.evaluation_text:
        evaluation = data.evaluation_blocks(
            order.evaluation_text, order.evaluation, tokenizer, shape.vocab_size, shape.context_length, first_token
        )
    domains = tuple(
        data.evaluation_blocks(
            text, order.evaluation, tokenizer, shape.vocab_size, shape.context_length, first_token, f"domains.{index}"
        )
        for index, text in enumerate(order.domain_texts)
        if order.evaluation
    )
    held_out = [blocks for blocks in (evaluation, *domains) if blocks is not None]
    calibration, training = _calibration_blocks(order, calibrated, tokenizer, shape, held_out)
    for blocks in (calibration, *training.values()):
        warnings += blocks.warnings if blocks else ()
    return Inputs(files, shape, tokenizer is not None, calibration, evaluation, training, domains, tuple(warnings))


def _calibration_blocks(
    order: WorkOrder,
    settings: Calibration | None,
    tokenizer: Any,
    shape: ModelShape,
    held_out: Sequence[data.TokenBlocks],
) -> tuple[data.TokenBlocks | None, dict[int, data.TokenBlocks]]:
    """What methods calibrate on, and what each stage that trains is trained on."""
    training: dict[int, data.TokenBlocks] = {}
    if settings is None:
        return None, training
    sizes = (shape.vocab_size, shape.context_length)
    text = order.calibration_text
    if text is None:
        assert order.calibration_tokens is not None, "checked with the order"
        expected = order.calibration_tokenizer_sha256
        return stored_blocks(order.calibration_tokens, settings, tokenizer, expected, *sizes), training
    first_token = _first_token(tokenizer, shape)
    apart = held_out if settings.exclude_held_out else None
    calibration = data.calibration_blocks(text, settings, tokenizer, *sizes, first_token, apart)
    for index, stage in enumerate(order.recipe):
        if isinstance(stage, Training):
            training[index] = data.training_blocks(text, stage, index, tokenizer, *sizes, first_token, apart)
    return calibration, training


def check_stages(recipe: Sequence[Stage], shape: ModelShape) -> None:
    """Raise RecipeUnfit, before any work, for a method that cannot take the model's family."""
    for index, stage in enumerate(recipe):
        if reason := stage.refusal(shape):
            raise RecipeUnfit(reason, field=f"recipe.{index}")


def fingerprint(model_dir: Path) -> list[tuple[str, int, str]]:
    """Names, sizes, and the ends of every file: enough to tell that a work directory belongs to another model.

    That the files are what their source says was verified when they were fetched, by their whole hashes.
    """
    found: list[tuple[str, int, str]] = []
    for path in sorted(path for path in model_dir.iterdir() if path.is_file()):
        with path.open("rb") as stream:
            size = path.stat().st_size
            start = stream.read(1 << 20)
            stream.seek(max(0, size - (1 << 20)))
            found.append((path.name, size, identity_hash(start.hex(), stream.read().hex())))
    return found
