"""`pi0-serve`: answers the observations of robots and simulators, in openpi's client protocol."""

import argparse
import asyncio
import errno
import sys
from collections.abc import Sequence

from pi0.ript.commands.arguments import command_parser, complain, whole_number
from pi0.ript.commands.policy_argument import add_policy_arguments, load_policy
from pi0.ript.serving import PolicyServer, start_server

_EXAMPLES = """
examples:
  pi0-serve pi0/ript/output/ript/policy --guidance 2.0
  pi0-serve my_policy --port 8001 --prompt "put the bowl on the plate"
  curl http://127.0.0.1:8000/healthz

a client (pip install openpi-client typing_extensions):
  from openpi_client.websocket_client_policy import WebsocketClientPolicy
  client = WebsocketClientPolicy("127.0.0.1", 8000)
  client.get_server_metadata()   # names, widths and lengths
  actions = client.infer({"observation/image": image, "observation/wrist_image": wrist,
                          "observation/state": state, "prompt": "put the bowl on the plate"})["actions"]

Images are uint8 (height, width, 3), without a batch axis. There is no authentication: whoever reaches the
port gets actions. lerobot's own clients speak another protocol (gRPC with pickles); serve them with
lerobot's policy server, which loads what pi0-export --format lerobot writes.

exit codes: 2 unusable arguments, or the port is in use; 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        server = PolicyServer(
            load_policy(options, only_acts=True),
            guidance=options.guidance,
            num_steps=options.num_steps,
            prompt=options.prompt,
            seed=options.seed,
            max_message_mb=options.max_message_mb,
        )
        asyncio.run(_serve(server, options.host, options.port))
    except ValueError as error:
        return complain("pi0-serve", error)
    except OSError as error:
        where = f"port {options.port} of {options.host}"
        if error.errno == errno.EADDRINUSE:
            return complain("pi0-serve", f"--port: {where} is in use; choose another, or 0 for a free one")
        return complain("pi0-serve", f"cannot listen on {where}: {error.strerror}")
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "Serve a policy over a websocket: observations in, chunks of actions out."
    parser = command_parser("pi0-serve", description, _EXAMPLES)
    add_policy_arguments(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine only)")
    port, count = whole_number("0 to 65535", 0, 65535), whole_number("at least 1", 1)
    add("--port", type=port, default=8000, help="default %(default)s; 0: a free one")
    add("--guidance", type=float, default=1.0, help="towards a positive advantage (default %(default)s)")
    add("--num-steps", type=count, help="of the sampler (default: as the checkpoint says)")
    add("--prompt", help="the task, for clients that name none")
    add("--seed", type=int, help="of the sampling noise (default: other noise in each run)")
    add("--max-message-mb", type=float, default=16.0, help="a longer one is refused (default %(default)s)")
    return parser


async def _serve(server: PolicyServer, host: str, port: int) -> None:
    runner, port = await start_server(server, host, port)
    try:
        print(f"serving on ws://{host}:{port}, health on http://{host}:{port}/healthz", flush=True)  # noqa: T201
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
