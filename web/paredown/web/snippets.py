"""What people copy out of the pages: recipe files, commands, and code that loads an artifact."""

import json
import shlex
from typing import Any

import yaml

from paredown.contracts.artifact import ArtifactView, Manifest
from paredown.contracts.job import BUDGET_PRESETS, Format, JobSpec
from paredown.contracts.search import SearchSpec
from paredown.contracts.sweep import SweepSpec


def recipe_yaml(spec: JobSpec) -> str:
    """A recipe file for `pare submit` and `pare run`; fields at their default are left out."""
    more = spec.model_dump(
        mode="json", exclude_defaults=True, include={"calibration", "evaluation", "budget", "format", "dtype"}
    )
    return yaml.safe_dump({"recipe": _stages(spec), **more, **_preset(spec)}, sort_keys=False, allow_unicode=True)


def submit_command(spec: JobSpec) -> str:
    """The `pare` command for a recipe file saved as recipe.yaml."""
    words = ["pare", "submit", spec.model, "recipe.yaml"]
    for option, value in (("--name", spec.name), ("--pool", spec.pool), ("--priority", spec.priority or None)):
        if value is not None:
            words += [option, str(value)]
    for tag in spec.tags:
        words += ["--tag", tag]
    if spec.canary:
        words.append("--canary")
    return shlex.join(words)


def curl(spec: JobSpec, api_url: str, idempotency_key: str) -> str:
    return _curl(f"{api_url}/v1/jobs", request_body(spec), idempotency_key)


def _curl(address: str, request: dict[str, Any], idempotency_key: str) -> str:
    body = json.dumps(request, indent=2, ensure_ascii=False)
    return " \\\n  ".join(
        [
            f"curl --fail-with-body {shlex.quote(address)}",
            '--header "Authorization: Bearer $PARE_API_KEY"',
            '--header "Content-Type: application/json"',
            f'--header "Idempotency-Key: {idempotency_key}"',
            f"--data {shlex.quote(body)}",
        ]
    )


def request_body(spec: JobSpec) -> dict[str, Any]:
    """The job as JSON without the fields at their default."""
    more = spec.model_dump(mode="json", exclude_defaults=True, exclude={"model", "recipe"})
    return {"model": spec.model, "recipe": _stages(spec), **more, **_preset(spec)}


def sweep_body(spec: SweepSpec) -> dict[str, Any]:
    """The sweep as JSON without the fields at their default."""
    more = spec.model_dump(mode="json", exclude_defaults=True, exclude={"model", "recipes", "grid"})
    recipes = [[stage.identity() for stage in recipe] for recipe in spec.all_recipes()]
    return {"model": spec.model, "recipes": recipes, **more}


def search_body(spec: SearchSpec) -> dict[str, Any]:
    """The search as JSON without the fields at their default."""
    return {"model": spec.model, **spec.model_dump(mode="json", exclude_defaults=True, exclude={"model"})}


def sweep_texts(spec: SweepSpec, api_url: str, idempotency_key: str) -> list[tuple[str, str, str]]:
    """(title, language, text): the sweep as a file, as a command and as a request."""
    return _texts("sweep", sweep_body(spec), f"{api_url}/v1/sweeps", idempotency_key)


def search_texts(spec: SearchSpec, api_url: str, idempotency_key: str) -> list[tuple[str, str, str]]:
    """(title, language, text): the search as a file, as a command and as a request."""
    return _texts("search", search_body(spec), f"{api_url}/v1/searches", idempotency_key)


def _texts(noun: str, body: dict[str, Any], address: str, idempotency_key: str) -> list[tuple[str, str, str]]:
    return [
        (f"{noun.capitalize()} file", "yaml", yaml.safe_dump(body, sort_keys=False, allow_unicode=True)),
        ("pare", "bash", f"pare {noun} submit {noun}.yaml"),
        ("curl", "bash", _curl(address, body, idempotency_key)),
    ]


def _preset(spec: JobSpec) -> dict[str, str]:
    """The budget's name in place of its terms, where it has one."""
    name = next((name for name, preset in BUDGET_PRESETS.items() if preset == spec.budget), None)
    return {"budget": name} if name else {}


def _stages(spec: JobSpec) -> list[dict[str, Any]]:
    return [stage.identity() for stage in spec.recipe]


def download(artifact: ArtifactView) -> str:
    return shlex.join(["pare", "download", str(artifact.id), directory_name(artifact)])


def directory_name(artifact: ArtifactView) -> str:
    """A plain directory name made of the artifact's own."""
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in artifact.name).strip(".-")
    return kept or str(artifact.id)


def loaders(artifact: ArtifactView, manifest: Manifest) -> list[tuple[str, str, str]]:
    """(runtime, language, code) for each runtime that loaded this artifact and generated from it."""
    directory = directory_name(artifact)
    proven = [proof.runtime for proof in manifest.report.runtimes if proof.loads]
    return [(runtime, *_loader(runtime, directory, manifest)) for runtime in proven]


def _loader(runtime: str, directory: str, manifest: Manifest) -> tuple[str, str]:
    match runtime:
        case "transformers":
            return "python", _transformers(directory, manifest)
        case "native":
            return "python", _native(directory)
        case "vllm":
            return "bash", f"# pip install vllm\nvllm serve ./{shlex.quote(directory)}\n"
        case "llama.cpp":
            return "bash", _llama_cpp(directory, manifest)
    raise AssertionError(runtime)


def _transformers(directory: str, manifest: Manifest) -> str:
    packages = "transformers accelerate"
    if manifest.format is Format.COMPRESSED_TENSORS:
        packages += " compressed-tensors"
    return f"""# pip install {packages}
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({directory!r}, device_map="auto")
tokenizer = AutoTokenizer.from_pretrained({directory!r})

prompt = tokenizer("The three primary colours are", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=32)[0]))
"""


def _native(directory: str) -> str:
    return f"""# pip install 'paredown[worker]'
from paredown.engine.formats import native
from transformers import AutoTokenizer

model = native.load({directory!r})
tokenizer = AutoTokenizer.from_pretrained({directory!r})

prompt = tokenizer("The three primary colours are", return_tensors="pt").to(model.device)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=32)[0]))
"""


def _llama_cpp(directory: str, manifest: Manifest) -> str:
    weights = next(file.path for file in manifest.files if file.path.endswith(".gguf"))
    model = shlex.quote(f"{directory}/{weights}")
    return f"""# brew install llama.cpp, or a release from https://github.com/ggml-org/llama.cpp/releases
llama-completion --model {model} --prompt 'The three primary colours are' --n-predict 32 -no-cnv

# The same behind an OpenAI-compatible API on port 8080:
llama-server --model {model}
"""
