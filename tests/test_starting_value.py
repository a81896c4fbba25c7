"""The value function that training starts from, in both products."""

from pathlib import Path

import pytest
import torch
from conftest import metaworld_policy

from pi0 import PI0Policy
from pi0.ript.data.cache import ImageCache
from pi0.ript.data.settings import MixtureSettings
from pi0.ript.distributed import World
from pi0.ript.labels.settings import RewardConfig
from pi0.ript.recap.config import ValueModel
from pi0.ript.recap.data import Reading
from pi0.ript.recap.snapshot_plan import SnapshotPlan
from pi0.ript.recap.stages import Artefact, Kind, StageName
from pi0.ript.recap.trainings import ValueRecipe
from pi0.ript.recap.workshop import Workshop
from pi0.ript.supervised import SupervisedSettings
from pi0.ript.supervised.models import DataSummary, value_to_train
from pi0.ript.supervised.settings import ModelSettings
from pi0.ript.training.settings import ValueTraining
from pi0.value import ValueFunction
from train_ript_pi0_final import fit


def recap_value(policy: Path, form: str) -> ValueFunction:
    """Return the value function as a recipe of RECAP makes it."""
    model, reading = ValueModel(form=form, width=16), Reading(None, False, {})
    recipe = ValueRecipe(model, ValueTraining(), RewardConfig(), {}, 0, 0, reading)
    workshop = Workshop(World(), "cpu", ImageCache(0.0), fit, Path(), SnapshotPlan())
    return recipe._value({"sft": Artefact(StageName(Kind.POLICY), policy, "")}, workshop)


def pi0_train_value(policy: Path, form: str) -> ValueFunction:
    settings = SupervisedSettings(policy=ModelSettings(type="value", reads=str(policy), form=form, width=16))
    return value_to_train(settings, DataSummary(MixtureSettings()), "cpu")


@pytest.mark.parametrize("make", [recap_value, pi0_train_value])
def test_a_separate_value_function_begins_with_the_policys_vision_and_language(make, tmp_path):
    policy = metaworld_policy()
    policy.save_pretrained(tmp_path / "policy")
    value = dict(make(tmp_path / "policy", "separate").named_parameters())
    copied = {name: x for name, x in policy.model.named_parameters() if name.startswith(("vision.", "vlm."))}
    assert set(copied) == {name for name in value if name.startswith(("vision.", "vlm."))}
    assert not [name for name, parameter in copied.items() if not torch.equal(parameter, value[name])]
    assert len(copied) > 10
    assert {"readout", "head.weight"} < set(value)


@pytest.mark.parametrize("make", [recap_value, pi0_train_value])
def test_an_expert_has_no_eyes_of_its_own(make, tmp_path):
    metaworld_policy().save_pretrained(tmp_path / "policy")
    value = make(tmp_path / "policy", "expert")
    assert isinstance(value.reads, PI0Policy)
    assert not [name for name, _ in value.named_parameters() if name.startswith(("vision.", "vlm."))]
    assert value.config.expert.width == 16
