"""`python3 -m sluice_server fetch-model | agent | vllm | wait-drained`; `collect-model-infos` makes the image."""

import sys


def main(command: list[str]) -> None:
    """Run one of the commands. Each imports only what it needs, after it has taken care of SIGTERM."""
    match command:
        case ["vllm"]:
            from sluice_server.first_process import work_in_child
            from sluice_server.paths import EXIT_SECONDS, SHUTDOWN_SECONDS, serve_port

            work_in_child(_serve, serve_port(), SHUTDOWN_SECONDS + EXIT_SECONDS)
        case ["agent"]:
            from sluice_server.first_process import exit_at_sigterm

            exit_at_sigterm()
            from sluice_server.agent.run import run

            run()
        case ["fetch-model"]:
            from sluice_server.first_process import exit_at_sigterm

            exit_at_sigterm()
            from sluice_server import fetch_model

            fetch_model.run()
        case ["wait-drained"]:
            from sluice_server.wait_drained import wait_drained

            wait_drained()
        case ["collect-model-infos", *architectures]:
            from sluice_server.model_infos import collect

            collect(architectures)
        case _:
            sys.exit("usage: python3 -m sluice_server fetch-model|agent|vllm|wait-drained|collect-model-infos")


def _serve() -> None:
    from sluice_server.launch import serve

    serve()


if __name__ == "__main__":
    main(sys.argv[1:])
