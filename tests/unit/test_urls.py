"""What of a URL may be shown, and which is a path; and that no command shows more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from processes import refused
from stored import SPEC, episode

import latentplan
from latentplan import urls
from latentplan.cli import main
from latentplan.data.store import ZarrStore
from latentplan.errors import ConfigError, StoreError

USER, PASSWORD, TOKEN = "alice-in", "hunter2-pw", "s1gn4ture"
URL = f"memory://{USER}:{PASSWORD}@host/test_urls/data.zarr?token={TOKEN}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("runs/a b?c@d", "runs/a b?c@d"),
        ("s3://bucket/a@b.zarr", "s3://bucket/a@b.zarr"),
        ("https://h:8080/x.zarr", "https://h:8080/x.zarr"),
        ("https://u:p@h:80/x?sig=a&b=c", "https://***@h:80/x?***"),
        ("https://u:p/w?q#@h/x", "https://***@h/x"),  # not escaped
        ("https://u:p w@h/x#t", "https://***@h/x#***"),
        ("sftp://u@h/x", "sftp://***@h/x"),
        ("simplecache::https://u:p@h/x?t=1", "simplecache::https://***@h/x?***"),
        ("evaluation.data=https://:p@h/x", "evaluation.data=https://***@h/x"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert urls.public(url) == shown
    assert urls.public_values({"a": [url, 3, None]}) == {"a": [shown, 3, None]}
    if " " not in url:
        assert urls.public_text(f"Refused: url='{url}' (401)") == f"Refused: url='{shown}' (401)"


def test_a_file_url_is_a_path_of_this_machine(tmp_path: Path) -> None:
    for url in ("file:///tmp/a%20b", "file://localhost/tmp/a%20b", "FILE://LocalHost/tmp/a%20b"):
        assert urls.local(url, where="x") == Path("/tmp/a b")
    for url in ("file://other/tmp/a", "file://localhost", "s3://bucket/a"):
        with pytest.raises(ConfigError, match=rf"^x: {url}"):
            urls.local(url, where="x")
    with ZarrStore.create(f"file://localhost{tmp_path}/a.zarr", SPEC) as store:
        store.append(episode(0))
    assert (tmp_path / "a.zarr/zarr.json").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "cfm", "--data", "a.zarr", "--run", "s3://u:pw@bucket/run"],
        ["export", "lerobot", "a.zarr", "s3://u:pw@bucket/out"],
        ["show", "a.zarr", "--out", "s3://u:pw@bucket/a.png"],
        ["calibrate", "target", "--out", "s3://u:pw@bucket/a.png"],
        ["import", "calvin", "s3://u:pw@bucket/in", "--out", "b.zarr"],
    ],
)
def test_what_cannot_be_at_a_url_makes_no_folder_of_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with ZarrStore.create("a.zarr", SPEC) as store:
        store.append(episode(0))
    line = refused(argv, capsys)
    assert "s3://***@bucket/" in line and "need a path of this machine" in line, line
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]


@pytest.fixture
def clean_memory() -> Iterator[None]:
    yield
    memory = fsspec.filesystem("memory")
    for name in list(memory.store):
        if "test_urls" in name:
            del memory.store[name]


def assert_no_secret(text: str) -> None:
    found = re.findall(f"{USER}|{PASSWORD}|{TOKEN}", text)
    assert not found, text


def test_no_command_shows_or_keeps_the_secrets_of_a_url(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    clean_memory: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["env.links=7", "collect.length=9", "--workers", "0"]
    model = ["model.latent=4", "model.channels=[4,4,4,4]", "training.batch=2", "training.steps=2"]
    data = ["--data", URL]
    commands = {
        0: [
            ["collect", "rope", "--out", URL, "--episodes", "12", *small],
            ["train", "cfm", *data, "--run", "run", *model],
            ["show", URL],
            ["show", "run", *data],
            ["export", "lerobot", URL, "lerobot", "--images", "--fps", "4"],
        ],
        2: [
            ["collect", "rope", "--out", URL, "--episodes", "12", *small, "collect.length=4"],
            ["collect", "toy-nothing", "--out", URL, "--episodes", "1"],
            ["show", URL.replace("data", "nothing")],
            ["train", "cfm", "--data", URL.replace("memory", "nofs"), "--run", "other"],
            ["replay", URL],
            ["show", URL, "--episode", "99"],
            ["record", "--backend", "sim", "--task", "reach", "--out", URL, "--steps", "2"],
        ],
    }
    for code, lines in commands.items():
        for argv in lines:
            monkeypatch.setattr("sys.argv", ["latentplan", *argv])
            assert main(argv) == code, (argv, capfd.readouterr())
    with monkeypatch.context() as patch:

        def unreachable(*given: object, **named: object) -> None:
            raise RuntimeError(f"401 for url='{URL}'")

        patch.setattr(MemoryFileSystem, "cat_file", unreachable)
        assert main(["show", URL]) == 2
    printed = capfd.readouterr()
    assert "memory://***@host/test_urls/data.zarr?***" in printed.out
    assert "401 for url='memory://***@host" in printed.err
    assert_no_secret(printed.out + printed.err)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"config.yaml", "best.safetensors", "data.png"} <= {file.name for file in files}
    for file in files:
        assert_no_secret(file.name)
        assert_no_secret(file.read_bytes().decode("latin1"))
    for name, content in fsspec.filesystem("memory").store.items():
        if "test_urls" in name:
            assert_no_secret(content.getvalue().decode("latin1"))
    with pytest.raises(StoreError) as caught:
        ZarrStore.create(URL, SPEC)
    assert_no_secret(str(caught.value))


def test_what_is_collected_at_a_url_opens_again(clean_memory: None) -> None:
    given = {"env": {"links": 7}, "collect": {"length": 3}}
    found = latentplan.collect("rope", out=URL, episodes=2, workers=0, overrides=given)
    assert_no_secret(repr(found) + json.dumps(found.store))
    with found.open() as store:
        assert len(store) == 2
        assert_no_secret(str(store.path))
