"""What is up, in a few lines for a person."""

from pathlib import Path

from dev.cluster.own import Own
from dev.cluster.processes import LAST_LINES, Process
from dev.cluster.provider import kubeconfig, running, state_folder
from dev.errors import DevError


def describe() -> tuple[str, bool]:
    """The state of the cluster in words, and whether it can be used."""
    provider = running()
    if provider is None:
        return "no cluster is up: `python3 -m dev up`", False
    healthy = provider.healthy()
    lines = [f"provider    {provider.name}", f"kubeconfig  {kubeconfig()}"]
    lines.append(f"state       {'healthy' if healthy else 'NOT healthy: `python3 -m dev up` starts it anew'}")
    if isinstance(provider, Own):
        lines += [_line(process) for processes in provider.processes() for process in processes]
    return "\n".join(lines), healthy


def logs(component: str | None) -> str:
    """The end of one component's log, or the names and paths of all."""
    logs = _logs(state_folder())
    if component is None:
        return "\n".join(f"{name:<26}{file}" for name, file in logs.items())
    if component not in logs:
        raise DevError(f"no log of {component!r}; there are {', '.join(logs) or 'none'}")
    return "".join(logs[component].read_text(errors="replace").splitlines(keepends=True)[-10 * LAST_LINES :])


def _logs(state: Path) -> dict[str, Path]:
    return {file.stem: file for pattern in ("logs", "*/logs") for file in sorted(state.glob(f"{pattern}/*.log"))}


def _line(process: Process) -> str:
    return f"{process.name:<26}{'running' if process.running else 'ENDED':<9}pid {process.pid}"
