"""LIBERO's files: tasks, benchmark states, assets; nothing here simulates."""

import io
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from pi0.ript.envs import InitialStateError, make_env, make_suite
from pi0.ript.envs import libero_files as files
from pi0.ript.envs.libero import _import_libero

TASK = "pick_up_the_milk_and_place_it_in_the_basket"


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """Assets that hold just the XML files that one task needs."""
    for folder in files._ASSET_FOLDERS:
        (tmp_path / folder).mkdir()
    for path in files.missing_assets(tmp_path, "libero_object", TASK):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<mujoco><!-- <mesh file='unused.stl'/> --></mujoco>")
    files._missing_of.cache_clear()
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path))
    return tmp_path


@pytest.fixture
def without_assets(tmp_path):
    """LIBERO imported with an empty folder of assets; later tests prepare its import again."""
    files.prepare_import(tmp_path)
    yield
    _import_libero.cache_clear()


@pytest.mark.usefixtures("without_assets")
def test_tasks_are_the_benchmarks():
    from libero.libero import benchmark

    for suite in files.SUITES:
        theirs = benchmark.get_benchmark_dict()[suite]().tasks
        ours = make_suite("libero", suite=suite).tasks()
        assert [(t.name, t.language) for t in theirs] == [(t.name, t.instruction) for t in ours]
        assert {t.max_steps for t in ours} == {files.SUITES[suite]}


@pytest.mark.parametrize("suite", files.SUITES)
def test_benchmark_states_equal_torchs_reading(suite):
    task = files.task_names(suite)[-1]
    path = files.package_root() / "init_files" / suite / f"{task}.pruned_init"
    ours = files.benchmark_states(suite, task)
    np.testing.assert_array_equal(ours, torch.load(path, weights_only=False))
    assert len(ours) == 50


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("content", [Evil(), np.zeros(3), b"garbage", None])
def test_bad_benchmark_file_is_one_clear_error(tmp_path, content, capsys):
    path = tmp_path / "task.pruned_init"
    data = content if isinstance(content, bytes) else pickle.dumps(content)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl" if content is not None else "archive/other", data)
    path.write_bytes(archive.getvalue())
    with pytest.raises(InitialStateError, match="is no file of LIBERO initial states"):
        files.read_pruned_init(path)
    assert "executed" not in capsys.readouterr().out


def test_complete_assets_pass(assets):
    assert files.missing_assets(assets, "libero_object", TASK) == []
    make_suite("libero").check(make_suite("libero").select([TASK]))


def test_missing_asset_is_named_before_anything_starts(assets):
    milk = assets / "stable_hope_objects/milk/milk.xml"
    assert not milk.exists() or milk.unlink() is None
    (assets / "stable_hope_objects/milk").mkdir(exist_ok=True)
    milk.write_text('<mujoco><mesh file="visual/milk.msh"/></mujoco>')
    (assets / "stable_scanned_objects/milk/milk.xml").unlink(missing_ok=True)
    (assets / "articulated_objects/milk/milk.xml").unlink(missing_ok=True)
    files._missing_of.cache_clear()
    message = r"milk.*needs 1 asset files.*visual/milk\.msh.*hf download lerobot/libero-assets"
    with pytest.raises(FileNotFoundError, match=message):
        make_env("libero", TASK, num_workers=1)


def test_missing_scene_is_named(assets):
    (assets / "scenes/libero_floor_base_style.xml").unlink()
    files._missing_of.cache_clear()
    with pytest.raises(FileNotFoundError, match="libero_floor_base_style"):
        make_env("libero", TASK)


def test_no_assets_says_how_to_fetch_them(tmp_path, monkeypatch):
    monkeypatch.setenv("LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"does not hold LIBERO's assets.*hf download"):
        files.assets_folder()
    monkeypatch.delenv("LIBERO_ASSETS")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"are in none of .*\.cache/libero/assets.*hf down"):
        files.assets_folder()


def test_hf_liberos_config_names_the_assets(assets, tmp_path_factory, monkeypatch):
    monkeypatch.delenv("LIBERO_ASSETS")
    config = tmp_path_factory.mktemp("config")
    (config / "config.yaml").write_text(f"assets: {assets}\n")
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(config))
    assert files.assets_folder() == assets.resolve()


def test_import_asks_nothing_and_needs_no_torch(tmp_path):
    """In a home folder without hf-libero's configuration, whose import would read the keyboard."""
    code = """
import sys
from pathlib import Path
from pi0.ript.envs import libero_files
libero_files.prepare_import(Path(sys.argv[1]))
import libero.libero
print(libero.libero.get_assets_path(), "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=True,
        env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.split() == [str(tmp_path), "False"]


def test_an_edited_instruction_reaches_the_policy(tmp_path, monkeypatch):
    suite, (task, other, *_) = "libero_goal", files.task_names("libero_goal")
    stock = {name: files.bddl_file(suite, name).read_text() for name in (task, other)}
    monkeypatch.setattr(files, "package_root", lambda: tmp_path)
    files.bddl_file(suite, task).parent.mkdir(parents=True)
    for name, text in stock.items():
        files.bddl_file(suite, name).write_text(text)
    assert files.instruction(suite, task) == task.replace("_", " ")
    edited = re.sub(r"\(:language [^)]*\)", "(:language Pull the \n middle drawer)", stock[task])
    files.bddl_file(suite, task).write_text(edited)
    assert files.instruction(suite, task) == "Pull the middle drawer"
    assert files.instruction(suite, other) == other.replace("_", " ")
    files.bddl_file(suite, task).unlink()
    assert files.instruction(suite, task) == task.replace("_", " ")


def test_a_configuration_of_another_install_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("LIBERO_ASSETS", raising=False)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path))
    old = tmp_path / "old"
    for folder in files._ASSET_FOLDERS:
        (old / folder).mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(f"assets: {old}\n")
    suite = make_suite("libero", suite="libero_goal")
    with pytest.raises(
        FileNotFoundError, match=rf"{old} \(as {tmp_path}/config.yaml says\) lacks, the first"
    ):
        suite.check(suite.tasks())
    for text in ("assets: [", "just text", "\x00"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=rf"{tmp_path}/config.yaml: expected LIBERO's paths as YAML"):
            suite.check(suite.tasks())


def test_a_wrong_egl_device_is_named_before_any_work(monkeypatch):
    for value in ("77", "-1", "first"):
        monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", value)
        for suite in (make_suite("libero", suite="libero_goal"), make_suite("metaworld")):
            with pytest.raises(ValueError, match=rf"MUJOCO_EGL_DEVICE_ID: expected .*, found '{value}'"):
                suite.check(suite.tasks()[:1])
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    make_suite("metaworld").check([])
