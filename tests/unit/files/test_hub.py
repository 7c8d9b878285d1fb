"""The hub, by its own client against a stand-in that speaks its API: what is fetched, and what every refusal says."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dev.cluster.ports import free_port
from sluice_api.artifacts import ADAPTER_FILES, model_fingerprint
from sluice_api.pods import DISK_ENV
from sluice_files import hub as hub_module
from sluice_files.credentials import Credentials
from sluice_files.errors import Failure, FileError
from sluice_files.hub import HubPath, HubRepository
from sluice_files.hub_datasets import dataset_files
from sluice_files.models import fetch_adapter, fetch_model
from tests.hub import LARGE, LIMITED, STRANGER, TOKEN, Hub, hub

LICENCE_PAGE = "https://huggingface.co/org/gated"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hub_module, "_RETRIES", 0)
    with hub(tmp_path / "hub") as served:
        yield served


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opens(stand_in: Hub, token: str | None = None) -> Credentials:
    values = {"HF_ENDPOINT": stand_in.endpoint, **({"HF_TOKEN": token} if token else {})}
    return Credentials("hub", values)


MODEL: dict[str, str | bytes] = {
    "config.json": '{"model_type": "llama"}',
    "tokenizer.json": "{}",
    "tokenizer.model": b"\0",
    "model-00001-of-00002.safetensors": b"a" * 400_000,
    "model-00002-of-00002.safetensors": b"b" * LARGE,
    "model.safetensors.index.json": "{}",
    "additional_chat_templates/rag.jinja": "x",
    "original/consolidated.00.pth": b"p" * LARGE,
    "original/params.json": "{}",
    "onnx/model.safetensors": b"o" * LARGE,
    "pytorch_model.bin": b"p" * LARGE,
    "README.md": "# A model",
    "training_args.bin": b"t",
}
FETCHED = {name for name in MODEL if name.startswith(("config", "tokenizer", "model", "additional"))}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://org/name", HubPath("org/name", None, "")),
        ("hf://org/name@v1", HubPath("org/name", "v1", "")),
        ("hf://org/name@v1/data/rows.jsonl", HubPath("org/name", "v1", "data/rows.jsonl")),
        ("hf://org/name/rows.jsonl", HubPath("org/name", None, "rows.jsonl")),
        ("hf://datasets/org/name@v1/data/*.csv", HubPath("org/name", "v1", "data/*.csv", True)),
        (
            "hf://datasets/org/name@refs/convert/parquet/default/train/0000.parquet",
            HubPath("org/name", "refs/convert/parquet", "default/train/0000.parquet", True),
        ),
        ("hf://datasets/org/name@refs/pr/12", HubPath("org/name", "refs/pr/12", "", True)),
        ("hf://gpt2@main", HubPath("gpt2", "main", "")),
    ],
)
def test_hub_path_parse(uri: str, expected: HubPath) -> None:
    assert HubPath.parse(uri) == expected


def test_hub_of_somebody_else_gives_nothing_to_those_who_share_a_cache(
    stand_in: Hub, cache: Path, tmp_path: Path
) -> None:
    """A mirror may answer with a real commit, and with weights of its own."""
    stand_in.add("org/model", MODEL)
    with hub(tmp_path / "mirror") as mirror:
        mirror.add("org/model", MODEL)
        folders = [fetch_model("hf://org/model", cache, opens(each)).folder for each in (mirror, stand_in)]
    assert len({folder.relative_to(cache).parts[0] for folder in folders}) == 2


def test_hub_model_is_its_own_files_and_no_pickles_or_other_formats(stand_in: Hub, cache: Path) -> None:
    stand_in.add("org/model", MODEL)
    fetched = fetch_model("hf://org/model", cache, opens(stand_in))
    assert {str(file.relative_to(fetched.folder)) for file in fetched.folder.rglob("*") if file.is_file()} == FETCHED
    assert fetched.fingerprint == model_fingerprint(stand_in.root / "models" / "org" / "model")
    assert fetched.revision == stand_in.repositories["models", "org/model"].commit("main")


def test_hub_model_of_older_weights_has_them(stand_in: Hub, cache: Path) -> None:
    names = ("config.json", "tokenizer.json", "pytorch_model.bin", "training_args.bin")
    stand_in.add("facebook/opt-125m", {name: MODEL[name] for name in names})
    fetched = fetch_model("hf://facebook/opt-125m", cache, opens(stand_in))
    assert {file.name for file in fetched.folder.iterdir()} == {"config.json", "tokenizer.json", "pytorch_model.bin"}


def test_hub_model_without_weights_is_told_apart_by_samples_from_afar(stand_in: Hub, cache: Path) -> None:
    stand_in.add("org/model", MODEL)
    fetched = fetch_model("hf://org/model", cache, opens(stand_in), weights=False)
    assert fetched.fingerprint == model_fingerprint(stand_in.root / "models" / "org" / "model")
    assert not list(fetched.folder.glob("*.safetensors"))
    assert fetched.folder.joinpath("config.json").is_file()


@pytest.mark.parametrize("config", [b"{", b"[]", b"3"])
def test_hub_model_with_a_broken_config_has_no_fingerprint(config: bytes, stand_in: Hub, cache: Path) -> None:
    stand_in.add("org/model", {**MODEL, "config.json": config})
    with pytest.raises(FileError, match=r"hf://org/model: config\.json can't be read: .*\. Restore it\.") as raised:
        _ = fetch_model("hf://org/model", cache, opens(stand_in)).fingerprint
    assert raised.value.failure is Failure.INVALID


def test_hub_model_is_fetched_at_the_recorded_commit(stand_in: Hub, cache: Path) -> None:
    repository = stand_in.add("org/model", MODEL)
    stand_in.branch(repository, "v2", {**MODEL, "config.json": '{"model_type": "mistral"}'})
    before = repository.commit("main")
    fetched = fetch_model("hf://org/model@v2", cache, opens(stand_in), revision=str(before))
    assert (fetched.revision, json.loads((fetched.folder / "config.json").read_text())["model_type"]) == (
        before, "llama",
    )  # fmt: skip
    assert fetch_model("hf://org/model@v2", cache, opens(stand_in)).revision == repository.commit("v2")


def test_hub_file_is_fetched_once(stand_in: Hub, cache: Path) -> None:
    stand_in.add("org/model", MODEL)
    fetch_model("hf://org/model", cache, opens(stand_in))
    stand_in.asked.clear()
    fetch_model("hf://org/model", cache, opens(stand_in))
    assert not [path for _, path, _ in stand_in.asked if path.startswith("/content/")] + stand_in.downloaded


def test_hub_token_goes_to_the_hub_alone(stand_in: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_fromTheEnvironment")  # somebody's own, on a machine without a cluster
    stand_in.add("org/gated", MODEL, gated=True)
    stand_in.add("org/open", MODEL)
    fetch_model("hf://org/gated", cache, opens(stand_in, TOKEN), weights=False)
    fetch_model("hf://org/gated", cache, opens(stand_in, TOKEN))
    assert {sent for _, path, sent in stand_in.asked if path.startswith("/content/")} == {None}
    assert {sent for _, path, sent in stand_in.asked if not path.startswith("/content/")} == {f"Bearer {TOKEN}"}
    stand_in.asked.clear()
    fetch_model("hf://org/open", cache, opens(stand_in))
    assert {sent for _, _, sent in stand_in.asked} == {None}


def test_hub_token_does_not_follow_to_another_host(stand_in: Hub, cache: Path, tmp_path: Path) -> None:
    """Of an answer about a repository, of one about a file, and of a part of one."""
    stand_in.add("org/model", MODEL)
    repository = HubRepository("hf://org/model", opens(stand_in, TOKEN), dataset=False)
    assert repository.files
    with hub(tmp_path / "other") as other:
        other.add("org/model", MODEL)
        stand_in.elsewhere = other.endpoint
        assert HubRepository("hf://org/model", opens(stand_in, TOKEN), dataset=False).commit
        assert repository.read("config.json", 99) == b'{"model_type": "llama"}'
        with pytest.raises(FileError):  # what is not of the hub's network is not asked for a file's commit
            repository.fetch(["tokenizer.json"], cache)
        assert {path.split("/")[1] for _, path, _ in other.asked} == {"api", "org"}
        assert {sent for _, _, sent in other.asked} == {None}


def test_hub_adapter_is_what_an_engine_reads(stand_in: Hub, cache: Path) -> None:
    stand_in.add("org/adapter", dict.fromkeys((*ADAPTER_FILES, "manifest.json", "optimizer.pt"), "{}"))
    fetched = fetch_adapter("hf://org/adapter", cache, opens(stand_in))
    assert {file.name for file in fetched.folder.iterdir()} == {*ADAPTER_FILES, "manifest.json"}


@pytest.mark.parametrize(
    ("uri", "token", "failure", "says"),
    [
        ("hf://org/gated", None, Failure.REFUSED, rf"there is no token\. Accept its licence at {LICENCE_PAGE}"),
        ("hf://org/gated", None, Failure.REFUSED, r"name a Secret with your token in the credentials beside the addre"),
        ("hf://org/gated", STRANGER, Failure.REFUSED, rf"in the Secret hub has no access\. Accept .* {LICENCE_PAGE}"),
        ("hf://org/gated", LIMITED, Failure.REFUSED, r"may not read it \(Please enable access to public gated repo"),
        ("hf://org/gated", "hf_wrongCanary0123456", Failure.REFUSED, r"does not take the HF_TOKEN of the Secret hub"),
        ("hf://org/private", None, Failure.NOT_FOUND, r"no such repository or file, or does not show it without a tok"),
        ("hf://org/private", STRANGER, Failure.NOT_FOUND, r"does not show it to the owner of the HF_TOKEN"),
        ("hf://org/none", TOKEN, Failure.NOT_FOUND, r"no such repository"),
        ("hf://org/model@v9", None, Failure.NOT_FOUND, r"it has no revision v9\. Correct the address"),
        ("hf://org/model/deeper", None, Failure.NOT_FOUND, r"there is nothing below this address"),
        ("hf://org/-name-", None, Failure.INVALID, r"it names no repository"),
        ("hf://org/empty", None, Failure.NOT_FOUND, r"has no config\.json\. It has: README\.md"),
        ("hf://org/unsaved", None, Failure.NOT_FOUND, r"has no weights: neither .*Save them \(save_pretrained does\)"),
        ("hf://datasets/org/rows", None, Failure.INVALID, r"is the address of a dataset\. Name a model"),
    ],
)  # fmt: skip
def test_hub_refuses(uri: str, token: str | None, failure: Failure, says: str, stand_in: Hub, cache: Path) -> None:
    stand_in.add("org/gated", MODEL, gated=True)
    stand_in.add("org/private", MODEL, private=True)
    stand_in.add("org/model", MODEL)
    stand_in.add("org/empty", {"README.md": "x"})
    stand_in.add("org/unsaved", {"config.json": "{}", "consolidated.00.pth": b"x", "training_args.bin": b"x"})
    with pytest.raises(FileError, match=says) as raised:
        fetch_model(uri, cache, opens(stand_in, token))
    assert raised.value.failure is failure
    assert raised.value.message.startswith(uri)
    assert "Canary" not in raised.value.message


def test_hub_that_is_down_or_nowhere_is_asked_again_later(stand_in: Hub, cache: Path) -> None:
    stand_in.add("org/model", MODEL)
    stand_in.down = True
    with pytest.raises(FileError, match=r"the hub answered 503\. Wait until it serves again\.") as raised:
        fetch_model("hf://org/model", cache, opens(stand_in))
    assert raised.value.failure is Failure.UNREACHABLE
    nowhere = Credentials("hub", {"HF_ENDPOINT": f"http://127.0.0.1:{free_port('127.0.0.1')}"})
    with pytest.raises(FileError, match=r"can't be reached from this pod.*networkPolicy\.egress") as raised:
        fetch_model("hf://org/model", cache, nowhere)
    assert raised.value.failure is Failure.UNREACHABLE


def test_hub_model_that_does_not_fit_does_not_begin(
    stand_in: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.add("org/model", MODEL)
    monkeypatch.setenv(DISK_ENV, "300000")
    with pytest.raises(FileError, match=r"has room for 0\.0\. Raise resources\.ephemeralStorage") as raised:
        fetch_model("hf://org/model", cache, opens(stand_in))
    assert raised.value.failure is Failure.TOO_LARGE
    assert stand_in.downloaded == []


def test_hub_model_that_fills_the_disk_names_it_and_not_the_network(
    stand_in: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    stand_in.add("org/model", MODEL)
    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", full)
    with pytest.raises(FileError, match=r"hf://org/model: this pod's disk is full \(") as raised:
        fetch_model("hf://org/model", cache, opens(stand_in))
    assert raised.value.failure is Failure.TOO_LARGE


def readme(*configs: str) -> str:
    return "---\nconfigs:\n" + "".join(configs) + "---\n# Rows\n"


def config(name: str, files: str, *more: str) -> str:
    return f"- config_name: {name}\n  data_files:\n{files}" + "".join(f"  {line}\n" for line in more)


def of_split(split: str, path: str) -> str:
    return f"  - split: {split}\n    path: {path}\n"


def naming(path: str) -> dict[str, str]:
    return {"README.md": readme(config("x", of_split("train", path))), "a.csv": "a"}


NESTED = "  - &a [/etc/passwd]\n" + "".join(
    f"  - &{name} [{', '.join(f'*{before}' for _ in range(10))}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Ten million texts, if each is counted as often as it is named."""
ROW = '{"text": "x"}\n'
TWO_CONFIGS = {
    "README.md": readme(
        config("en", of_split("train", "en/*.jsonl") + of_split("test", "en-test/*.jsonl"), "default: true"),
        config("de", of_split("train", "de/rows.jsonl")),
    ),
    "en/a.jsonl": ROW, "en/b.jsonl": ROW, "en-test/a.jsonl": ROW, "de/rows.jsonl": ROW, "de/notes.txt": "x",
}  # fmt: skip
SHARDS = {f"data/{split}-0000{n}-of-00002.parquet": "x" for split in ("train", "test") for n in (0, 1)}
LISTED = {
    "README.md": readme(config("default", "  - split: train\n    path: [data/abc.csv, data/def.csv]\n")),
    **dict.fromkeys(("data/abc.csv", "data/def.csv", "data/ghi.csv"), "a"),
}
"""As in the docs of `datasets`; seen elsewhere: huggingface/datasets#6443."""
PACKED = ["train-2.jsonl.zst", "train.jsonl.gz"]
TRAIN_SHARDS = [name for name in SHARDS if "train" in name]


@pytest.mark.parametrize(
    ("rule", "files", "behind", "config", "split", "expected"),
    [
        ("splits by the names of shards", SHARDS, "", None, None, TRAIN_SHARDS),
        ("another split", SHARDS, "", None, "test", [name for name in SHARDS if "test" in name]),
        ("one file is the split train", {"alpaca_data.json": "[]"}, "", None, None, ["alpaca_data.json"]),
        ("splits by the names of files", {"train.csv": "a", "test.csv": "a"}, "", None, None, ["train.csv"]),
        ("splits by the names of folders", {"train/a.csv": "a", "test/a.csv": "a"}, "", None, None, ["train/a.csv"]),
        ("packed files", dict.fromkeys(PACKED, "a"), "", None, None, PACKED),
        ("a README for people only", {"README.md": "# x", "a.jsonl": ROW}, "", None, None, ["a.jsonl"]),
        ("the default configuration", TWO_CONFIGS, "", None, None, ["en/a.jsonl", "en/b.jsonl"]),
        ("another configuration", TWO_CONFIGS, "", "de", None, ["de/rows.jsonl"]),
        ("a configuration's own split", TWO_CONFIGS, "", "en", "test", ["en-test/a.jsonl"]),
        ("a list of paths", LISTED, "", None, None, ["data/abc.csv", "data/def.csv"]),
        ("a script in another name is no script", {"make_rows.py": "", "a.csv": "a"}, "", None, None, ["a.csv"]),
        ("a file by its path", TWO_CONFIGS, "/de/rows.jsonl", None, None, ["de/rows.jsonl"]),
        ("files by a pattern", TWO_CONFIGS, "/e*/a*", None, None, ["en-test/a.jsonl", "en/a.jsonl"]),
        ("an older list of infos is not read", {"dataset_infos.json": "{}", "a.csv": "a"}, "", None, None, ["a.csv"]),
    ],
)  # fmt: skip
def test_hub_dataset_is_the_files_of_a_split(
    rule: str, files: dict[str, str], behind: str, config: str | None, split: str | None, expected: list[str],
    stand_in: Hub, cache: Path,
) -> None:  # fmt: skip
    stand_in.add("org/rows", files, "datasets")
    found = dataset_files(f"hf://datasets/org/rows{behind}", cache, opens(stand_in), config, split)
    assert [file.name for file in found] == expected, rule
    assert [file.path.read_text() for file in found] == [files[name] for name in expected]
    assert set(stand_in.downloaded) <= {*expected, "README.md"}, "no other file is downloaded"


def test_hub_dataset_without_the_word_datasets_is_the_older_way(stand_in: Hub, cache: Path) -> None:
    stand_in.add("org/rows", TWO_CONFIGS, "datasets")
    (found,) = dataset_files("hf://org/rows/de/rows.jsonl", cache, opens(stand_in))
    assert found.name == "de/rows.jsonl"


def test_hub_dataset_made_by_a_program_is_read_from_the_hubs_conversion(stand_in: Hub, cache: Path) -> None:
    repository = stand_in.add("org/squad", {"squad.py": "raise SystemExit", "README.md": "# x"}, "datasets")
    converted = {f"{name}/{split}/0000.parquet": "x" for name in ("plain", "v2") for split in ("train", "test")}
    stand_in.branch(repository, "refs/convert/parquet", converted)
    with pytest.raises(FileError, match=r"never run\. .*hf://datasets/org/squad@refs/convert/parquet$") as raised:
        dataset_files("hf://datasets/org/squad", cache, opens(stand_in))
    remedy = raised.value.message.rpartition(" ")[2]
    with pytest.raises(FileError, match=r"several configurations\. Choose one by config: plain, v2\."):
        dataset_files(remedy, cache, opens(stand_in))
    (found,) = dataset_files(remedy, cache, opens(stand_in), "v2")
    assert found.name == "v2/train/0000.parquet"


@pytest.mark.parametrize(
    ("files", "behind", "config", "split", "failure", "says"),
    [
        (TWO_CONFIGS, "", "fr", None, Failure.NOT_FOUND, "has no configuration fr. It has: de, en. Correct config."),
        (TWO_CONFIGS, "", "de", "test", Failure.NOT_FOUND, "has no split test. It has: train. Correct split."),
        ({"test.csv": "a"}, "", None, None, Failure.NOT_FOUND, "has no split train. It has: test."),
        ({"a.csv": "a"}, "", "en", None, Failure.NOT_FOUND, "has no configuration en. It has: default."),
        (TWO_CONFIGS, "/en", None, None, Failure.NOT_FOUND, "It is a folder: write hf://datasets/org/rows/en/*"),
        (TWO_CONFIGS, "/fr.csv", None, None, Failure.NOT_FOUND, "there is no file fr.csv. There is: README.md, de/n"),
        (TWO_CONFIGS, "/de/*", "de", None, Failure.INVALID, "config and split choose among all files"),
        ({"notes.docx": "x"}, "", None, None, Failure.INVALID, "There is: notes.docx. Name them: hf://datasets/org"),
        ({"train.zip": "x"}, "", None, None, Failure.INVALID, "There is: train.zip."),
        ({"README.md": "---\n{\n---\n", "a.csv": "a"}, "", None, None, Failure.INVALID, "its README.md can't be rea"),
        *(
            (naming(path), "", None, None, Failure.INVALID, "files that are not its own")
            for path in (
                "/etc/passwd", "../o/*.csv", "https://h/x.csv", "zip://x.csv::https://h/a", "hf://datasets/o/n",
                "'file:/etc/passwd'", "file:etc/passwd", "'~/*'", "'a\\..\\b'", "memory:x",
            )
        ),
        (
            {"README.md": readme(config("x", NESTED)), "a.csv": "a"},
            "", None, None, Failure.INVALID, "files that are not its own (/etc/passwd)",
        ),
        (
            {"README.md": readme("- config_name: x\n  data_files: &a [*a, /etc/passwd]\n"), "a.csv": "a"},
            "", None, None, Failure.INVALID, "files that are not its own (/etc/passwd)",
        ),
    ],
)  # fmt: skip
def test_hub_dataset_refuses(
    files: dict[str, str], behind: str, config: str | None, split: str | None, failure: Failure, says: str,
    stand_in: Hub, cache: Path,
) -> None:  # fmt: skip
    stand_in.add("org/rows", files, "datasets")
    with pytest.raises(FileError) as raised:
        dataset_files(f"hf://datasets/org/rows{behind}", cache, opens(stand_in), config, split)
    assert (raised.value.failure, says in raised.value.message) == (failure, True), raised.value.message


def test_hub_dataset_that_is_gated_names_the_datasets_page(stand_in: Hub, cache: Path) -> None:
    stand_in.add("org/rows", {"train.csv": "a"}, "datasets", gated=True)
    with pytest.raises(FileError, match=r"https://huggingface\.co/datasets/org/rows, and name a Secret"):
        dataset_files("hf://datasets/org/rows", cache, opens(stand_in))
    assert dataset_files("hf://datasets/org/rows", cache, opens(stand_in, TOKEN))
