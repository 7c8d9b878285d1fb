"""Which links in a model's folder lead out of it."""

from pathlib import Path

import pytest

from sluice_api.artifacts import stray_link


@pytest.mark.parametrize(
    ("rule", "link", "target", "stray"),
    [
        ("a file of its own", "", "", False),
        ("a name for another of its files", "models/x/a.json", "config.json", False),
        ("out of the folder, inside the claim", "models/x/a.json", "../../rows.jsonl", True),
        ("out of the claim", "models/x/a.json", "/etc/hostname", True),
        ("a folder", "models/x/1_Pooling", "../y", True),
        ("in a folder of it", "models/x/sub/a.json", "../../../rows.jsonl", True),
        ("in a folder of a folder of it", "models/x/sub/lower/a.json", "../../../../rows.jsonl", True),
        ("to nothing", "models/x/a.json", "/nowhere", True),
        ("the hub's cache", "m/snapshots/4f3c/config.json", "../../blobs/c0ffee", False),
        ("through a blob that is a link itself", "m/snapshots/4f3c/a.json", "../../blobs/away", True),
        ("another repository's blobs", "m/snapshots/4f3c/a.json", "../../../other/blobs/c0ffee", True),
        ("a folder that is only named blobs", "models/x/a.json", "../../blobs/c0ffee", True),
    ],
)
def test_link_out_of_a_model_folder_is_found(rule: str, link: str, target: str, stray: bool, tmp_path: Path) -> None:
    for file in (
        "rows.jsonl",
        "models/x/config.json",
        "models/x/sub/lower/b.json",
        "models/y/config.json",
        "m/blobs/c0ffee",
        "m/snapshots/4f3c/README",
        "other/blobs/c0ffee",
        "blobs/c0ffee",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    (tmp_path / "m/blobs/away").symlink_to(tmp_path / "rows.jsonl")
    if link:
        (tmp_path / link).unlink(missing_ok=True)
        (tmp_path / link).symlink_to(target)
    folder = tmp_path / ("m/snapshots/4f3c" if link.startswith("m/") else "models/x")
    assert stray_link(folder) == (tmp_path / link if stray else None)
