"""A checkpoint in two safetensors files with an index is not read, and the advice is to convert it to safetensors (lerobot#826)."""

import json

from case_sets import WORK, check, end, make, short, train
from conftest import toy_policy
from safetensors.torch import load_file, save_file

from pi0 import PI0Policy

policy = toy_policy(tasks=["do thing 0", "do thing 1"])  # those of the data set
policy.save_pretrained(WORK / "p")
tensors = load_file(WORK / "p/model.safetensors")
names = sorted(tensors)
parts = {
    "model-00001-of-00002.safetensors": names[: len(names) // 2],
    "model-00002-of-00002.safetensors": names[len(names) // 2 :],
}
for file, part in parts.items():
    save_file({name: tensors[name] for name in part}, WORK / "p" / file)
index = {
    "metadata": {"total_size": 0},
    "weight_map": {name: file for file, part in parts.items() for name in part},
}
(WORK / "p/model.safetensors.index.json").write_text(json.dumps(index))
(WORK / "p/model.safetensors").unlink()
try:
    loaded = dict(PI0Policy.from_pretrained(WORK / "p").named_parameters())
    check(
        all((loaded[name] == p).all() for name, p in policy.named_parameters()), "the shards are the policy"
    )
except ValueError as error:
    text = str(error)
    check(
        "index" in text.split("found")[0] or "shard" in text or "merge" in text,
        f"loads, or says how to merge shards: {text[-160:]}",
    )
root = make()
found = train(root, "out", f"policy.pretrained_path={WORK / 'p'}")
check(
    found[0] == 0 or any(word in found[1] for word in ("shard", "merge", "several files")),
    f"pi0-train: {short(found)}",
)

end()
