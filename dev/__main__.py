"""`python3 -m dev <command>`: the local cluster and all that belongs to it."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from dev.cluster import binaries, control_plane, images, provider, status, tools, volumes
from dev.cluster.control_plane import ControlPlane
from dev.environment import environment
from dev.errors import DevError
from dev.lock import lock_all
from dev.progress import step
from dev.promtool import promtool


def up(words: argparse.Namespace) -> None:
    """Bring the cluster up, and say where it is."""
    cluster = provider.up(words.gpus)
    step(f"the cluster is up (provider: {cluster.name})")
    print(provider.kubeconfig())


def down(_: argparse.Namespace) -> None:
    """Remove the cluster and everything in it."""
    provider.down()
    step("no cluster is up")


def show_status(_: argparse.Namespace) -> None:
    """Say what is up; exits with 1 if the cluster can't be used."""
    words, healthy = status.describe()
    print(words)
    if not healthy:
        sys.exit(1)


def show_logs(words: argparse.Namespace) -> None:
    """Print the end of a component's log, or list the logs."""
    print(status.logs(words.component))


def show_kubeconfig(_: argparse.Namespace) -> None:
    """Print the path of the kubeconfig."""
    print(provider.kubeconfig())


def set_gpus(words: argparse.Namespace) -> None:
    """Change the number of fake GPUs."""
    nodes = provider.must_be_running().set_gpus(words.count)
    print(f"{', '.join(nodes) or 'no node'}: {words.count} fake GPUs")


def make_environment(_: argparse.Namespace) -> None:
    """Make the Python environment."""
    print(environment())


def make_tools(_: argparse.Namespace) -> None:
    """Get kubectl, helm and promtool."""
    for path in (*tools.tools().values(), promtool()):
        print(path)


def make_programs(_: argparse.Namespace) -> None:
    """Build all programs of the cluster, and those that only tests need: KWOK and an object store."""
    binaries.build_all()
    binaries.build_kwok()
    binaries.build_object_store()
    print(binaries.FAKE_NODES.path("kwok"))


def load_images(words: argparse.Namespace) -> None:
    """Make the dev images; load OCI archives, if any are given, into the cluster."""
    if not words.archives:
        print(images.archive())
    for archive in words.archives:
        provider.must_be_running().load(archive)


def run_control_plane(words: argparse.Namespace) -> None:
    """Start or stop a control plane without a node."""
    if words.action == "down":
        ControlPlane.opened(words.state).stop()
        return
    plane = control_plane.start(words.state, controller_manager=not words.api_only, scheduler=not words.api_only)
    print(plane.kubeconfig)


def make_volume(words: argparse.Namespace) -> None:
    """Make a claim and the folder behind it."""
    print(volumes.volume(words.namespace, words.claim))


def make_models(_: argparse.Namespace) -> None:
    """Make the models that tests use."""
    from dev.models import models

    for path in models():
        print(path)


def run_demo(_: argparse.Namespace) -> None:
    """Show the main job on a real cluster: an engine lends a GPU to a fine-tuning job and serves the result."""
    from dev.demo import demo

    demo()


def lock(words: argparse.Namespace) -> None:
    """Write the lock files."""
    lock_all(upgrade=words.upgrade)


def parser() -> argparse.ArgumentParser:
    """All commands and what they take."""
    top = argparse.ArgumentParser(prog="python3 -m dev", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")

    def command(name: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(function=function)
        return sub

    gpus = f"fake GPUs of the node (a new cluster has {provider.DEFAULT_GPUS})"
    command("up", up).add_argument("--gpus", type=int, help=gpus)
    command("down", down)
    command("status", show_status)
    command("logs", show_logs).add_argument("component", nargs="?")
    command("kubeconfig", show_kubeconfig)
    command("gpus", set_gpus).add_argument("count", type=int)
    command("env", make_environment)
    command("tools", make_tools)
    command("programs", make_programs)
    command("images", load_images).add_argument("archives", nargs="*", type=Path, help="OCI archives to load")
    plane = command("control-plane", run_control_plane)
    plane.add_argument("action", choices=["up", "down"])
    plane.add_argument("state", type=Path, help="its state folder; one control plane in each")
    plane.add_argument("--api-only", action="store_true", help="no controller manager, no scheduler")
    volume = command("volume", make_volume)
    volume.add_argument("namespace")
    volume.add_argument("claim")
    command("models", make_models)
    command("demo", run_demo)
    command("lock", lock).add_argument("--upgrade", action="store_true", help="take newer versions")
    return top


def main() -> None:
    """Run the command that was given."""
    words = parser().parse_args()
    try:
        words.function(words)
    except DevError as wrong:
        sys.exit(f"dev: {wrong}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
