"""Serving a policy: observations in, chunks of actions out, over a websocket in openpi's client protocol."""

from pi0.ript.serving.server import PolicyServer, start_server

__all__ = ["PolicyServer", "start_server"]
