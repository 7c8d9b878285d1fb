"""The cluster that is made here: Kubernetes from its own modules, one node on this machine, nothing but packages."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dev.cluster import binaries, control_plane, host, images, node, tools
from dev.cluster.control_plane import ControlPlane
from dev.cluster.kubectl import Kubectl
from dev.cluster.processes import Processes
from dev.environment import environment
from dev.progress import step

MADE_ONCE: tuple[Callable[[], object], ...] = (binaries.build_all, environment, images.archive, tools.tools)


class Own:
    """The cluster of one state folder."""

    name = "own"

    def __init__(self, state: Path) -> None:
        """Everything of the running cluster is below `state`."""
        self.state = state

    def healthy(self) -> bool:
        """Whether it runs, all of it, and its node is Ready."""
        if not self._complete.exists():
            return False
        plane = ControlPlane.opened(self._control_plane)
        programs = all(process.running for process in Processes(self.state))
        return programs and plane.healthy() and Kubectl(plane.kubeconfig).node_is_ready(node.NAME)

    def processes(self) -> list[Processes]:
        """Its programs: those of the control plane, then those of the node."""
        return [Processes(self._control_plane), Processes(self.state)]

    def prepare(self) -> None:
        """Get everything that is made once: packages, programs, images, the environment."""
        host.must_be_root()
        host.install_packages()
        with ThreadPoolExecutor() as pool:
            making = [pool.submit(make) for make in MADE_ONCE]
        for made in making:
            made.result()

    def up(self) -> None:
        """Start it, over the remains of an earlier one if there are any."""
        self.prepare()
        self.down()
        self.state.mkdir(parents=True, exist_ok=True)
        try:
            self._start()
        except BaseException:
            step("starting failed: stopping what was started (the logs stay until the next `up` or `down`)")
            self._stop()
            raise

    def down(self) -> None:
        """Stop it and remove everything of it, its volumes too."""
        if self.state.exists():
            host.must_be_root()
            self._stop()
            host.remove(self.state)

    def set_gpus(self, count: int) -> list[str]:
        """Fake GPUs on its node."""
        return Kubectl(self.state / "kubeconfig").set_gpus(node.FAKE_GPU_LABEL, count)

    def load(self, archive: Path) -> None:
        """Put the images of an OCI archive into the node."""
        node.load_images(self.state, archive)

    def _start(self) -> None:
        host.network_up(self.state)
        with ThreadPoolExecutor() as pool:
            containers = pool.submit(self._start_containers)
            step("starting the control plane")
            plane = control_plane.start(self._control_plane, address=host.ADDRESS, nodes_send_heartbeats=True)
            containers.result()
        step("starting the node")
        node.start(self.state, plane, Processes(self.state))
        (self.state / "kubeconfig").symlink_to(plane.kubeconfig)
        self._complete.touch()

    def _start_containers(self) -> None:
        step("starting containerd and loading the images")
        node.start_containerd(self.state, Processes(self.state))
        self.load(images.archive())

    def _stop(self) -> None:
        Processes(self.state).stop()
        Processes(self._control_plane).stop()
        self._complete.unlink(missing_ok=True)
        node.clean_up(self.state)

    @property
    def _control_plane(self) -> Path:
        return self.state / "control-plane"

    @property
    def _complete(self) -> Path:
        """There when everything has been started, so that a half-started cluster isn't taken for a whole one."""
        return self.state / "complete"
