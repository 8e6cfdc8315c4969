"""`lasr push` against a hub on loopback that answers what `huggingface_hub` calls."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import spandrel
from huggingface_hub import DatasetCard, HfApi, ModelCard
from safetensors import safe_open

from lasr.__main__ import main as lasr
from schemas.manifest import open_manifest
from tests.support import training
from tests.support.hub import Host, reached_by_huggingface_hub, serve
from tests.support.upstream import save_clip
from trainer import loop
from trainer.models.rrdb import untrained_rrdb
from trainer.models.save import save_network

DATA, MODEL = "datasets/owner/patches", "models/owner/net"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with serve() as host:
        reached_by_huggingface_hub(host, tmp_path / "home", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        host.hub.token = "hf_secret"
        yield host


@pytest.fixture
def own(manifest: Path, tmp_path: Path) -> Path:
    """A copy of the manifest, to change."""
    shutil.copytree(manifest.parent, tmp_path / "data", ignore=shutil.ignore_patterns("*.work"))
    return tmp_path / "data" / manifest.name


def push(*words: object) -> int:
    return lasr(["push", *map(str, words)])


def test_a_data_set_is_uploaded_once_and_updated(
    host: Host, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push("dataset", own, "owner/patches", "--dry-run", "--private") == 0
    assert "dataset owner/patches (new, private)" in capsys.readouterr().out
    assert not host.hub.repositories and not any(one.method == "POST" for one in host.seen)

    argv = ("dataset", own, "owner/patches", "--private", "--licence", "cc-by-4.0")
    assert push(*argv) == 0
    assert f"pushed:     {host.address}/{DATA}\n" in capsys.readouterr().out
    repository = host.hub.repositories[DATA]
    parts = {f"patches.parquet/{path.name}": path.read_bytes() for path in open_manifest(own).files}
    assert repository.private and parts.items() <= repository.files.items()
    assert parts.keys() <= repository.large  # over the large-file storage
    assert repository.files["images.parquet"] == (own.parent / "images.parquet").read_bytes()
    card = DatasetCard(repository.files["README.md"].decode())
    assert card.data.license == "cc-by-4.0" and "license_name" not in card.data.to_dict()
    assert card.data.configs[0]["data_files"] == "patches.parquet/*.parquet"
    assert "<!-- la-sr" not in card.content and "## Models" in card.content

    uploads = len(repository.commits), sum(seen.method == "PUT" for seen in host.seen)
    assert push(*argv) == 0  # nothing new: only the record is looked at
    assert sum(seen.method == "PUT" for seen in host.seen) == uploads[1]
    first, *others = open_manifest(own).files
    first.rename(own.parent / "gone")
    assert push(*argv) == 0  # a part that is gone here is removed there, and nothing else
    assert set(repository.files) & parts.keys() == {f"patches.parquet/{one.name}" for one in others}
    record = json.loads(repository.files["lasr.json"])
    assert set(record["files"]) == set(repository.files) - {"lasr.json", ".gitattributes"}


@pytest.mark.parametrize("where", ["collision", "beside", "changed", "hostile record"])
def test_what_is_not_ours_on_the_hub_stays(
    where: str, host: Host, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    api = HfApi(endpoint=host.address)
    argv = ("dataset", own, "owner/patches", "--licence", "mit")
    if where == "changed":
        assert push(*argv) == 0
        repository = host.hub.repositories[DATA]
        name = "images.parquet"
        repository.files[name] = b"somebody else's"
    else:
        api.create_repo("owner/patches", repo_type="dataset")
        repository = host.hub.repositories[DATA]
        name = {"collision": "README.md", "beside": "model.bin"}.get(where, "lasr.json")
        repository.files[name] = b'{"la-sr": 1, "files": [1]}'
    before = dict(repository.files)
    for more in ([], ["--dry-run"]):
        capsys.readouterr()
        assert push(*argv, *more) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"owner/patches: holds {name}, which `lasr push` did not put there" in error
    assert repository.files == before


def test_a_card_that_was_edited_on_the_hub_stays(
    host: Host, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("dataset", own, "owner/patches")
    assert push(*argv) == 0
    assert "licence:    not stated in the card: pass --licence" in capsys.readouterr().out
    repository = host.hub.repositories[DATA]
    repository.files["README.md"] += b"\nMine.\n"
    edited = repository.files["README.md"]
    repository.files["notes.md"] = b"also mine"
    assert push(*argv) == 0
    assert "left as is: README.md, edited on the Hub" in capsys.readouterr().out
    assert repository.files["README.md"] == edited and "notes.md" in repository.files


def test_an_interrupted_push_continues(
    host: Host, own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lasr.hub import repository as code

    monkeypatch.setattr(code, "_FILES", 1)
    argv = ("dataset", own, "owner/patches", "--licence", "mit")
    original, calls = host.hub._commit, 0

    def second_fails(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        host.hub.refuse = [503] if calls == 2 else []
        return original(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(host.hub, "_commit", second_fails)
        assert push(*argv) == 1
    assert "the Hub answered 503" in capsys.readouterr().err
    repository = host.hub.repositories[DATA]
    assert "lasr.json" in repository.files and len(repository.commits) == 1
    assert push(*argv) == 0
    whole = json.loads(repository.files["lasr.json"])["files"]
    assert set(whole) == set(repository.files) - {"lasr.json", ".gitattributes"}
    assert "same:" in capsys.readouterr().out


def test_mistakes_are_one_line(
    host: Host, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def line(*words: object) -> str:
        assert push(*words) == 1
        return capsys.readouterr().err.splitlines()[-1]

    assert "names no owner; give owner/name" in line("dataset", own, "patches")
    assert "a b/c: " in line("dataset", own, "a b/c")
    assert "--licence No!: no name of the Hub" in line("dataset", own, "a/b", "--licence", "No!")
    assert "no run there" in line("model", tmp_path, "a/b")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "the Hub answered 401: Invalid credentials; log in with" in line("dataset", own, "a/b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "the Hub cannot be reached" in line("dataset", own, "a/b", "--dry-run")
    (own.parent / "card.md").unlink()
    assert "no data card beside the manifest" in line("dataset", own, "a/b")


@pytest.fixture(scope="module")
def run(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    save_clip(folder / "models/clip")
    save_network(untrained_rrdb(8, 1, 32), folder / "models", "sr")  # spandrel's growth
    settings = training.config(manifest, folder / "models", folder / "runs" / "mine", steps=2)
    loop.train(settings)
    return settings.folder


def test_a_networks_header_says_where_it_comes_from(run: Path, manifest: Path) -> None:
    with safe_open(run / "model.safetensors", "pt") as file:
        about = file.metadata()
    assert about["modelspec.sai_model_spec"] == "1.0.0"
    assert about["modelspec.architecture"] == "ESRGAN" and about["modelspec.license"]
    settings = json.loads((run / "config.json").read_text())
    assert about["manifest_identity"] == settings["manifest_identity"]
    assert about["started_from"] == settings["weights"]["sr_init"] and about["scale"] == "4"
    descriptor = spandrel.ModelLoader().load_from_file(run / "model.safetensors")
    assert descriptor.architecture.id == about["modelspec.architecture"]
    assert descriptor.scale == 4 and descriptor.input_channels == 3


def test_a_network_is_shared_with_its_card(
    host: Host, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push("model", run, "owner/net", "--licence", "apache-2.0") == 0
    repository = host.hub.repositories[MODEL]
    assert not repository.private
    for name in ("model.safetensors", "model.pth", "stats.jsonl"):
        assert repository.files[name] == (run / name).read_bytes()
    assert "config.json" not in repository.files
    card = ModelCard(repository.files["README.md"].decode())
    settings = json.loads((run / "config.json").read_text())
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-to-image"
    for identity in (value for key, value in settings["weights"].items() if key != "la-sr"):
        assert f"`{identity}`" in card.content
    lines = map(json.loads, (run / "stats.jsonl").read_text().splitlines())
    last = [line for line in lines if "total" in line][-1]
    assert f"step {last['step']}" in card.content and f"{last['total']:.4g}" in card.content
    assert settings["manifest_identity"] in card.content
    assert str(run.parent) not in card.content  # no paths of this machine
