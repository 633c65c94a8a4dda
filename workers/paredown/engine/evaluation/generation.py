"""Whether a model still writes, or runs in a loop: greedy texts after fixed prompts, and how much of them repeats.

seq-rep-4 (Welleck et al., "Neural Text Generation with Unlikelihood Training", arXiv:1908.04319): the share of a
continuation's 4-grams of tokens that occurred in it before, 1 − distinct / all. Small sound models repeat themselves
under greedy decoding too, so what counts is the rise over the base, which reads the same prompts in the same runtime.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

from paredown.contracts.pieces import GENERATED_TOKENS
from paredown.contracts.report import Generation
from paredown.engine.evaluation.speed import Role
from paredown.engine.inputs import Inputs
from paredown.engine.runtimes import RuntimeProcess

PROMPTS = (
    "The history of the city begins with",
    "To repair a bicycle tyre, you first",
    "In a small village by the sea there lived",
    "The main difference between plants and animals is",
    "The committee met on Tuesday to discuss",
    "When water is heated in a closed vessel,",
)
_GRAM = 4


def repetition(tokens: Sequence[int]) -> float:
    """seq-rep-4, 0 to 1; of fewer than four tokens, 0."""
    grams = [tuple(tokens[start : start + _GRAM]) for start in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def of_roles(processes: Mapping[Role, RuntimeProcess], inputs: Inputs) -> dict[Role, Generation]:
    """What models that are loaded write. Raises RuntimeFailed."""
    return {role: _written_by(process, inputs) for role, process in processes.items()}


def _written_by(process: RuntimeProcess, inputs: Inputs) -> Generation:
    """Texts of GENERATED_TOKENS tokens, or of what a short context leaves."""
    tokenizer, context = inputs.tokenizer, inputs.shape.context_length
    prompts = [list(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in PROMPTS]
    # Of one length, so that a runtime can read them at once without padding.
    length = max(1, min(context // 4, *map(len, prompts)))
    begun = [] if inputs.first_token is None else [inputs.first_token]
    read = [[*begun, *prompt[:length]] for prompt in prompts]
    new_tokens = max(1, min(GENERATED_TOKENS, context // 2))
    written = process.continuations(read, new_tokens)
    return Generation(
        prompts=len(PROMPTS),
        new_tokens=new_tokens,
        repetition=fmean(map(repetition, written)),
        samples=tuple(
            str(tokenizer.decode([*prompt, *tokens], skip_special_tokens=True))
            for prompt, tokens in zip(read, written, strict=True)
        ),
    )
