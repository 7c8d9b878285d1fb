"""A cluster in Docker, where Docker is: kind, with the images as their Dockerfiles build them."""

import shutil
from pathlib import Path

from dev.cache import REPOSITORY
from dev.cluster import tools
from dev.cluster.images import DEV_IMAGES
from dev.cluster.kubectl import Kubectl
from dev.commands import run, succeeds
from dev.progress import step

CLUSTER = "sluice"
FAKE_GPU_LABEL = "sluice.dev/fake-gpu=true"
# Where the Dockerfile of each image is; they are built from the repository's root.
FOLDERS = dict(zip(DEV_IMAGES, ("operator", "trainer_image", "server_image"), strict=True))
# dev/values.yaml says `device: cpu`: the engines of this cluster need vLLM for CPUs.
BUILD_ARGS = {"server_image": ("LOCK=requirements.cpu.lock", "SYSTEM=libnuma1")}

CONFIG = """\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
- role: control-plane
  extraMounts:
  - hostPath: {volumes}
    containerPath: {volumes}
"""


def build_command(image: str, folder: str) -> list[str | Path]:
    """What builds one image as this cluster runs it."""
    arguments = [f"--build-arg={argument}" for argument in BUILD_ARGS.get(folder, ())]
    return ["docker", "build", "--tag", image, "--file", REPOSITORY / folder / "Dockerfile", *arguments, REPOSITORY]


def available() -> bool:
    """Whether a Docker engine answers and kind is on PATH."""
    return shutil.which("kind") is not None and succeeds(["docker", "info"])


class Kind:
    """The kind cluster named `sluice`."""

    name = "kind"

    def __init__(self, state: Path) -> None:
        """The kubeconfig and the volumes are below `state`."""
        self.state = state

    def healthy(self) -> bool:
        """Whether it answers."""
        kubeconfig = self.state / "kubeconfig"
        return kubeconfig.exists() and Kubectl(kubeconfig).answers()

    def up(self) -> None:
        """Make the cluster, of the Kubernetes version that this kind was released with, and load the images."""
        tools.tools()
        self.down()
        volumes = self.state / "volumes"
        volumes.mkdir(parents=True)
        step("starting kind")
        create = ["kind", "create", "cluster", "--name", CLUSTER, "--config", "-", "--wait", "120s"]
        run(
            [*create, "--kubeconfig", self.state / "kubeconfig"],
            stdin=CONFIG.format(volumes=volumes),
        )
        Kubectl(self.state / "kubeconfig").label_nodes(FAKE_GPU_LABEL)
        for image, folder in FOLDERS.items():
            step(f"building {image} from {folder}/Dockerfile")
            run(build_command(image, folder))
            run(["kind", "load", "docker-image", image, "--name", CLUSTER])

    def down(self) -> None:
        """Remove the cluster and its state."""
        run(["kind", "delete", "cluster", "--name", CLUSTER])
        shutil.rmtree(self.state, ignore_errors=True)

    def set_gpus(self, count: int) -> list[str]:
        """Fake GPUs on its node."""
        return Kubectl(self.state / "kubeconfig").set_gpus(FAKE_GPU_LABEL, count)

    def load(self, archive: Path) -> None:
        """Load an image archive."""
        run(["kind", "load", "image-archive", archive, "--name", CLUSTER])
