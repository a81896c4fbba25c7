"""Environments by name."""

import pytest
from counting_env import CountingSuite

from pi0.ript.envs import make_env, make_suite, register_env
from pi0.ript.envs import registry as registry_module


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry_module, "_SUITES", dict(registry_module._SUITES))


def test_others_can_add_an_environment(registered):
    register_env("counting", "counting_env:CountingSuite")
    with make_env("counting", "up", num_slots=2, max_steps=4) as env:
        assert list(env.tasks) == ["counting/up"]
        assert env.task("up").max_steps == env.task("counting/up").max_steps == 4
    with pytest.raises(ValueError, match="'counting' is registered already"):
        register_env("counting", CountingSuite)


def test_unknown_names_come_with_suggestions():
    with pytest.raises(ValueError, match="unknown environment 'metawrld'; did you mean 'metaworld'"):
        make_suite("metawrld")
    with pytest.raises(ValueError, match="'image_sise'; did you mean 'image_size'"):
        make_suite("metaworld", image_sise=64)
    with pytest.raises(ValueError, match="'buton-press-v3'; did you mean 'button-press-v3'"):
        make_env("metaworld", ["buton-press-v3"])
    with pytest.raises(ValueError, match="'libero_objct'; did you mean 'libero_object'"):
        make_suite("libero", suite="libero_objct")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("metaworld", {"render_quality": "best"}, "must be 'stock' or 'fast', found 'best'"),
        ("metaworld", {"action_repeat": 0}, "must be positive"),
        ("libero", {"image_size": 300}, "image_size <= render_size"),
        ("libero", {"settle_steps": -1}, "must not be negative"),
    ],
)
def test_bad_options_are_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_suite(name, **options)


def test_a_deadline_is_positive(registered):
    register_env("counting", CountingSuite)
    with pytest.raises(ValueError, match="max_steps: expected a positive number, found 0"):
        make_env("counting", max_steps=0)
