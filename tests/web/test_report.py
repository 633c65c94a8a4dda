"""The smoke matrix of a report, on the page and in the terminal."""

from uuid import UUID

from rich.console import Console
from streamlit.testing.v1 import AppTest
from tests.web.house import make_manifest

from paredown.client import render_artifacts
from paredown.contracts.artifact import Manifest
from paredown.contracts.job import JobSpec
from paredown.contracts.report import RuntimeProof


def proved() -> Manifest:
    """In transformers, and in vLLM, which timed it too."""
    spec = JobSpec.model_validate({"model": "pkg://some/model.gguf", "recipe": [{"method": "rtn"}]})
    manifest = make_manifest(UUID(int=1), spec, {}, 23.5)
    speeds = {
        role: speed.model_copy(update={"runtime": "vllm 0.32.0", "decode_tokens_per_second": decode})
        for (role, speed), decode in zip(manifest.report.speeds.items(), (71.5, 83.5), strict=True)
    }
    [own, _] = manifest.report.runtimes
    vllm = RuntimeProof(
        runtime="vllm", version="0.32.0", loads=True, perplexity=23.75, sample="red, blue", speeds=speeds
    )
    other = RuntimeProof(runtime="llama.cpp", version="", loads=False, detail="llama.cpp reads GGUF.")
    report = manifest.report.model_copy(update={"runtimes": (own, vllm, other)})
    return manifest.model_copy(update={"report": report})


def page() -> None:
    from tests.web.test_report import proved

    from paredown.web import report

    report.show(proved())


def test_the_page_has_each_runtime_with_its_speeds() -> None:
    app = AppTest.from_function(page, default_timeout=30).run()
    assert not app.exception
    [matrix] = [table.value for table in app.get("html") if "Agrees" in str(table.value)]
    for said in ("transformers", "5.23", "vllm", "0.32.0", "23.75", "83.5", "71.5", "llama.cpp"):
        assert said in matrix, said
    assert any("Speed in vllm 0.32.0 on cpu" in caption.value for caption in app.caption)


def test_the_terminal_has_each_runtime_with_its_speeds() -> None:
    console = Console(width=200, record=True, force_terminal=False)
    console.print(render_artifacts.report(proved()))
    lines = console.export_text().splitlines()
    [row] = [line for line in lines if line.split()[:2] == ["vllm", "0.32.0"]]
    assert row.split()[2:8] == ["yes", "yes", "23.750", "yes", "83.5", "(base"]
    [own] = [line for line in lines if line.split()[:2] == ["transformers", "5.23"]]
    assert "(base 40.0)" in own
    assert sum("vllm 0.32.0, cpu" in line for line in lines) == 2, "base and artifact"
