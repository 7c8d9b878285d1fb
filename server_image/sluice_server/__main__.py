"""`python3 -m sluice_server agent | vllm | wait-drained`; while the image is built, `collect-model-infos CLASS ...`."""

import sys


def main(command: list[str]) -> None:
    """Run one of the commands; each imports only what it needs."""
    match command:
        case ["vllm"]:
            from sluice_server.launch import serve

            serve()
        case ["agent"]:
            from sluice_server.agent.run import run

            run()
        case ["wait-drained"]:
            from sluice_server.wait_drained import wait_drained

            wait_drained()
        case ["collect-model-infos", *architectures]:
            from sluice_server.model_infos import collect

            collect(architectures)
        case _:
            sys.exit("usage: python3 -m sluice_server agent|vllm|wait-drained|collect-model-infos")


if __name__ == "__main__":
    main(sys.argv[1:])
