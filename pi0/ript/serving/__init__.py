"""Serving a policy: observations in, chunks of actions out, over a websocket in openpi's client protocol."""

from pi0.ript.serving.access import Access, read_access
from pi0.ript.serving.limits import ServingLimits
from pi0.ript.serving.running import start_server
from pi0.ript.serving.server import PolicyServer

__all__ = ["Access", "PolicyServer", "ServingLimits", "read_access", "start_server"]
