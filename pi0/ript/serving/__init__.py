"""Serving a policy: observations in, chunks of actions out, over a websocket in openpi's client protocol."""
