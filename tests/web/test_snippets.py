"""What people copy out of the pages works where they paste it."""

import json
import shlex

import pytest
import yaml
from tests.web.house import make_manifest

from paredown.client.recipe_files import parse_recipe
from paredown.contracts.artifact import ArtifactView
from paredown.contracts.job import JobSpec
from paredown.contracts.recipes import recipe_hash, recipe_name
from paredown.contracts.report import RuntimeProof
from paredown.web import snippets

SPEC = JobSpec.model_validate(
    {
        "model": "hf://org/it's a model@main".replace(" ", "_"),
        "recipe": [{"method": "wanda", "pattern": "2:4"}, {"method": "gptq", "bits": 3, "skip": ["*.down_proj"]}],
        "calibration": {"samples": 64},
        "budget": {"max_size_ratio": 0.4},
        "name": "a name with spaces; and more",
        "tags": ["demo", "team:mlops"],
        "priority": 5,
    }
)


def test_the_recipe_file_is_read_back_as_the_same_recipe():
    file = parse_recipe(snippets.recipe_yaml(SPEC), "recipe.yaml")
    assert recipe_hash(file.recipe) == recipe_hash(SPEC.recipe)
    assert file.job(SPEC.model, name=SPEC.name, tags=SPEC.tags, priority=SPEC.priority) == SPEC


def test_defaults_are_left_out_of_the_recipe_file():
    written = yaml.safe_load(
        snippets.recipe_yaml(JobSpec.model_validate({"model": "hf://a/b", "recipe": [{"method": "rtn"}]}))
    )
    assert written == {"recipe": [{"method": "rtn"}]}


def test_the_command_is_quoted_for_a_shell():
    words = shlex.split(snippets.submit_command(SPEC))
    assert words[:4] == ["pare", "submit", SPEC.model, "recipe.yaml"]
    assert words[words.index("--name") + 1] == SPEC.name
    assert [words[index + 1] for index, word in enumerate(words) if word == "--tag"] == ["demo", "team:mlops"]


def test_the_curl_command_sends_the_same_job():
    words = shlex.split(snippets.curl(SPEC, "http://127.0.0.1:8000", "a-key"))
    assert words[2] == "http://127.0.0.1:8000/v1/jobs"
    assert "Idempotency-Key: a-key" in words
    assert JobSpec.model_validate(json.loads(words[words.index("--data") + 1])) == SPEC


@pytest.mark.parametrize("name", ["gptq-4", "../../etc/passwd", "a b;rm -rf ~", "…", "--help"])
def test_snippets_load_only_what_was_proven(name):
    spec = JobSpec.model_validate({"model": "hf://a/b", "recipe": [{"method": "gptq"}]})
    manifest = make_manifest("00000000-0000-4000-8000-000000000000", spec, {"model.safetensors": b"w"}, 23.0)
    view = _view(manifest, name)
    loaders = snippets.loaders(view, manifest)
    assert [runtime for runtime, _, _ in loaders] == ["transformers"]
    compile(loaders[0][2], "snippet", "exec")
    directory = shlex.split(snippets.download(view))[3]
    assert directory == snippets.directory_name(view)
    assert "/" not in directory
    assert not directory.startswith(("-", "."))


@pytest.mark.parametrize("name", ["gptq-4", "a b;rm -rf ~"])
def test_a_gguf_artifact_is_loaded_in_llama_cpp(name):
    spec = JobSpec.model_validate(
        {"model": "hf://a/b", "recipe": [{"method": "gptq", "group_size": 32}], "format": "gguf"}
    )
    manifest = make_manifest("00000000-0000-4000-8000-000000000000", spec, {"model.gguf": b"w"}, 23.0)
    proof = RuntimeProof(runtime="llama.cpp", version="xllamacpp 2026.10", loads=True)
    report = manifest.report.model_copy(update={"runtimes": (proof,)})
    manifest = manifest.model_copy(update={"report": report})
    view = _view(manifest, name)
    [(runtime, language, code)] = snippets.loaders(view, manifest)
    assert (runtime, language) == ("llama.cpp", "bash")
    lines = [line for line in code.splitlines() if line.startswith("llama-")]
    assert [shlex.split(line)[0] for line in lines] == ["llama-completion", "llama-server"]
    for line in lines:
        assert shlex.split(line)[1:3] == ["--model", f"{snippets.directory_name(view)}/model.gguf"]


def test_a_native_artifact_is_loaded_with_its_own_loader():
    spec = JobSpec.model_validate({"model": "hf://a/b", "recipe": [{"method": "svd"}]})
    manifest = make_manifest("00000000-0000-4000-8000-000000000000", spec, {"model.safetensors": b"w"}, 23.0)
    proofs = [proof.model_copy(update={"runtime": "native"}) for proof in manifest.report.runtimes if proof.loads]
    manifest = manifest.model_copy(update={"report": manifest.report.model_copy(update={"runtimes": tuple(proofs)})})
    [(runtime, language, code)] = snippets.loaders(_view(manifest, "svd"), manifest)
    assert (runtime, language) == ("native", "python")
    compile(code, "snippet", "exec")
    assert "native.load('svd')" in code


def _view(manifest, name):
    report = manifest.report
    return ArtifactView(
        id=manifest.artifact_id,
        project="default",
        job_id=manifest.job_id,
        name=name,
        model=manifest.base.uri,
        model_fingerprint=manifest.base.fingerprint,
        model_type="llama",
        parameters=manifest.base.parameters,
        recipe=manifest.recipe,
        recipe_name=recipe_name(manifest.recipe),
        recipe_hash=manifest.recipe_hash,
        format=manifest.format,
        size_bytes=report.size_bytes,
        base_bytes=report.base_bytes,
        size_ratio=report.size_ratio,
        perplexity=23.0,
        base_perplexity=20.0,
        protocol_hash="a" * 64,
        decode_tokens_per_second=None,
        base_decode_tokens_per_second=None,
        cost_per_million_tokens=None,
        currency=None,
        verdict=None,
        visibility="project",
        tags=(),
        created_at=manifest.created_at,
    )
