"""pi0-train resumes a run whose frozen weights are others than before: the policy at policy.pretrained_path
was trained again. That was a mixture of two models, with exit code 0 and no word (peft#1932)."""

import shutil

from harness import WORK, check, end, make, short, train
from safetensors.torch import load_file

data = make(size=16)
for name, more in {"a": ["seed=1", "steps=2"], "b": ["seed=2", "steps=20"]}.items():
    outcome = train(data, name, *more)
    check(outcome[0] == 0, f"base {name}: {short(outcome)}")
base = WORK / "base"
shutil.copytree(WORK / "a/run", base)
frozen = [f"policy.pretrained_path={base}", "policy.freeze=expert_only", "steps=4"]
outcome = train(data, "whole", *frozen)
check(outcome[0] == 0, f"not stopped: {short(outcome)}")
train(data, "again", *frozen)
shutil.rmtree(WORK / "again/run/checkpoint-4")  # as if it had been stopped after step 2
train(data, "again", *frozen)
whole, again = (load_file(WORK / name / "run/model.safetensors") for name in ("whole", "again"))
difference = max(float((whole[key] - again[key]).abs().max()) for key in whole)
check(
    difference == 0.0,
    "control: resumed with the same base, the result is that of the run that was not stopped",
)
shutil.rmtree(WORK / "again/run/checkpoint-4")
shutil.rmtree(base)
shutil.copytree(WORK / "b/run", base)  # the same path holds another policy now
outcome = train(data, "again", *frozen)
again = load_file(WORK / "again/run/model.safetensors")
difference = max(float((whole[key] - again[key]).abs().max()) for key in whole)
check(
    outcome[0] == 2 and "pretrained_path" in outcome[1],
    f"resumed with the base replaced: {short(outcome)}; weights differ by up to {difference:.2g} (expected: "
    "a refusal that names policy.pretrained_path)",
)
end()
