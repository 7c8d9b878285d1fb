"""What is run where Docker is, without Docker: the commands."""

from pathlib import Path

import yaml

from dev.cache import REPOSITORY
from dev.cluster.kind import FOLDERS, build_command


def test_server_image_of_a_cluster_without_gpus_has_vllm_for_cpus() -> None:
    values = yaml.safe_load((REPOSITORY / "dev" / "values.yaml").read_text())
    assert values["device"] == "cpu"
    name = f"{values['images']['server']['repository']}:{values['images']['server']['tag']}"
    command = build_command(name, FOLDERS[name])
    given = [str(word).removeprefix("--build-arg=") for word in command if str(word).startswith("--build-arg=")]
    arguments = {name: value for name, _, value in (word.partition("=") for word in given)}
    lock = REPOSITORY / "server_image" / arguments["LOCK"]
    assert "\nvllm-cpu==" in lock.read_text()
    assert arguments["SYSTEM"] in (REPOSITORY / "server_image" / "Dockerfile").read_text()
    assert command[-1] == REPOSITORY


def test_every_image_is_built_from_a_dockerfile_that_exists() -> None:
    for image, folder in FOLDERS.items():
        command = build_command(image, folder)
        assert Path(command[command.index("--file") + 1]).is_file()
        assert command[command.index("--tag") + 1] == image
