"""`pi0-serve`: answers the observations of robots and simulators, in openpi's client protocol."""

import argparse
import asyncio
import errno
import sys
from collections.abc import Sequence

from pi0.ript.commands.arguments import command_parser, complain, whole_number
from pi0.ript.commands.policy_argument import add_policy_arguments, require_checkpoint
from pi0.ript.files import path_argument
from pi0.ript.serving.access import Access, read_access
from pi0.ript.serving.limits import ServingLimits

_LIMITS = {
    "max_message_mb": "a longer message is refused",
    "max_image_side": "pixels; a larger image is refused",
    "max_prompt_characters": "a longer task is refused",
    "max_batch": "requests inferred together at most",
    "max_wait_ms": "how long a free policy waits for a batch to fill",
    "max_queue": "requests that may wait; another is answered Busy",
    "max_clients": "connections; another is refused",
    "timeout_s": "a request without an answer by then is answered Timeout",
    "grace_s": "at the end: how long accepted requests may take",
}

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

Images are uint8 (height, width, 3), without a batch axis. Requests that wait at the same time are inferred
together. An answer that is a text says why there are no actions: `Busy` (too many wait) and `Timeout` leave
the connection open, anything else closes it. lerobot's own clients speak another protocol (gRPC with pickles,
which are never read here); serve them with lerobot's policy server, which loads what pi0-export --format
lerobot writes.

for other machines (both are demanded unless --host is this machine):
  openssl rand -hex 32 > token
  pi0-serve my_policy --host 0.0.0.0 --token-file token --tls-cert cert.pem --tls-key key.pem
  client = WebsocketClientPolicy("wss://robot-server:8000", api_key=token)

exit codes: 2 unusable arguments, or the port is in use; 130, 143 ended by SIGINT or SIGTERM, after the
requests that were accepted have been answered (--grace-s; a second Ctrl+C ends at once)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        access = read_access(options.host, options.token_file, options.tls_cert, options.tls_key)
        limits = ServingLimits(**{name: getattr(options, name) for name in _LIMITS})
        require_checkpoint(options)
        return _serve(options, access, limits)
    except ValueError as error:
        return complain("pi0-serve", error)
    except OSError as error:
        where = f"port {options.port} of {options.host}"
        if error.errno == errno.EADDRINUSE:
            return complain("pi0-serve", f"--port: {where} is in use; choose another, or 0 for a free one")
        return complain("pi0-serve", f"cannot listen on {where}: {error.strerror}")


def _serve(options: argparse.Namespace, access: Access, limits: ServingLimits) -> int:
    from pi0.ript.commands.chosen_policy import load_policy  # torch comes with it
    from pi0.ript.serving.running import serve_until_signal
    from pi0.ript.serving.server import PolicyServer

    server = PolicyServer(
        load_policy(options, only_acts=True),
        guidance=options.guidance,
        num_steps=options.num_steps,
        prompt=options.prompt,
        seed=options.seed,
        limits=limits,
        access=access,
    )
    return asyncio.run(serve_until_signal(server, options.host, options.port))


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
    for name, text in _LIMITS.items():
        default = getattr(ServingLimits, name)
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=type(default), default=default, help=f"{text} (default %(default)s)")
    add("--token-file", type=path_argument, metavar="FILE", help="clients must send the token in this file")
    add("--tls-cert", type=path_argument, metavar="FILE", help="certificate chain (PEM): serve wss and https")
    add("--tls-key", type=path_argument, metavar="FILE", help="its private key (PEM)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
