"""What the files of a checkpoint are called, and a checkpoint on the hub; importing this loads no torch."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB_NAME = r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?"
"""Pattern of a hub repository's name, "owner/name" or "owner/name@revision"."""
