"""The start command, and what Streamlit is told."""

import tomllib
from pathlib import Path

import pytest

import paredown.web
from paredown.web import __main__ as start

HERE = Path(paredown.web.__path__[0])


def hosts(line: list[str]) -> list[str]:
    return [line[place + 1] for place, word in enumerate(line) if word == "--server.allowedHosts"]


def test_only_who_lets_everybody_in_asks_by_which_name_it_was_called() -> None:
    assert hosts(start.command(8501, "127.0.0.1", autologin=False)) == []
    assert {"localhost", "127.0.0.1"} <= set(hosts(start.command(8501, "127.0.0.1", autologin=True)))


def test_letting_everybody_in_is_for_this_machine_only(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("PARE_WEB_AUTOLOGIN", "1")
    monkeypatch.setattr("sys.argv", ["paredown.web", "--port", "8501", "--address", "0.0.0.0"])
    with pytest.raises(SystemExit):
        start.main()
    assert "this machine only" in capsys.readouterr().err


def test_nothing_is_told_to_anybody_else() -> None:
    config = tomllib.loads((HERE / ".streamlit" / "config.toml").read_text())
    assert config["browser"]["gatherUsageStats"] is False
    assert config["client"]["showErrorDetails"] == "none"
    assert not (HERE / "pages").exists(), "Streamlit would run files of a directory `pages` past the sign-in"


@pytest.mark.parametrize("asset", sorted((HERE / "assets").iterdir()), ids=lambda path: path.name)
def test_the_look_comes_from_here(asset: Path) -> None:
    text = asset.read_text().replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text
    assert "@import" not in text
