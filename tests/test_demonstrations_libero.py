"""LIBERO's pick-and-place expert, on the real simulator and on plain numbers."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import opened
from scipy.spatial.transform import Rotation

from pi0.ript.demonstrations import DemonstrationPlan, collect_demonstrations
from pi0.ript.demonstrations.experts import make_expert
from pi0.ript.demonstrations.libero_scene import Scene
from pi0.ript.demonstrations.libero_tasks import PICK_AND_PLACE
from pi0.ript.envs import make_suite

needs_libero = pytest.mark.skipif(
    "LIBERO_ASSETS" not in os.environ, reason="set LIBERO_ASSETS to LIBERO's assets"
)
DOWN = np.diag([1.0, -1.0, -1.0])


def box(centre: tuple[float, float, float], size: tuple[float, float, float]) -> np.ndarray:
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    return np.array(centre) + signs * np.array(size) / 2


def scene(obstacles: tuple[np.ndarray, ...] = ()) -> Scene:
    return Scene(
        gripper=np.array([0.0, 0.0, 0.3]),
        rotation=DOWN,
        closing=np.array([0.0, 1.0, 0.0]),
        object_corners=box((0.1, 0.1, 0.05), (0.12, 0.04, 0.10)),
        obstacles=obstacles,
        target=np.array([0.0, -0.2]),
        clearance=0.15,
        release=0.12,
        by_rim=False,
    )


def test_the_grasp_closes_along_the_narrow_side_and_avoids_neighbours():
    from pi0.ript.demonstrations.libero_expert import plan_grasp

    free = plan_grasp(scene())
    assert np.allclose(free.position[:2], (0.1, 0.1))
    assert np.allclose(free.rotation, DOWN), "the fingers close along the narrow side already"
    # A neighbour where a finger would go: the gripper turns aside, unless that is too wide.
    neighbour = (box((0.1, 0.145, 0.04), (0.02, 0.03, 0.08)),)
    narrow = replace(scene(), object_corners=box((0.1, 0.1, 0.05), (0.04, 0.04, 0.10)))
    turned = plan_grasp(replace(narrow, obstacles=neighbour)).rotation @ DOWN.T
    assert np.degrees(np.linalg.norm(Rotation.from_matrix(turned).as_rotvec())) > 20
    assert np.allclose(plan_grasp(narrow).rotation, DOWN)


def test_the_expert_moves_towards_the_object_and_is_a_function_of_what_it_saw():
    from pi0.ript.demonstrations.libero_expert import PickAndPlaceExpert

    first, second = (PickAndPlaceExpert().act(scene()) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (7,)
    assert first[0] > 0
    assert first[1] > 0
    assert first[2] < 0
    assert first[6] == -1.0, "the gripper is open"
    expert = PickAndPlaceExpert()
    above = replace(scene(), gripper=np.array([0.1, 0.1, expert_hover()]))
    assert expert.act(above)[2] < 0, "aligned above the object, it descends"


def expert_hover() -> float:
    from pi0.ript.demonstrations.libero_expert import plan_grasp

    return plan_grasp(scene()).hover


def test_a_misled_expert_sees_the_object_beside_or_the_target_short():
    from pi0.ript.demonstrations.libero_expert import PickAndPlaceExpert

    expert, true = PickAndPlaceExpert(), scene()
    beside = expert.misled(true, "beside")
    assert np.allclose(beside.object_corners - true.object_corners, (0, 0.05, 0))
    assert np.array_equal(beside.target, true.target)
    short = expert.misled(true, "short")
    assert np.linalg.norm(short.target - true.target) == pytest.approx(0.17)
    towards = np.array([0.1, 0.1]) - true.target
    assert np.dot(short.target - true.target, towards) > 0
    assert np.array_equal(short.object_corners, true.object_corners)


@pytest.mark.parametrize("suite", PICK_AND_PLACE)
def test_the_tasks_listed_exist(suite: str):
    names = {task.name for task in make_suite("libero", suite=suite).tasks()}
    assert set(PICK_AND_PLACE[suite]) <= names


@needs_libero
@pytest.mark.sim
def test_a_libero_demonstration_succeeds_and_is_read_by_lerobot(tmp_path: Path):
    options = {"suite": "libero_object", "image_size": 64, "render_size": 64}
    options |= {"render_quality": "fast"}
    task = make_suite("libero", **options).select(["pick_up_the_milk_and_place_it_in_the_basket"])
    plan = DemonstrationPlan("libero", (task[0].name,), options=options)
    (summary,) = collect_demonstrations(plan, tmp_path / "set", 1, keep="all")
    assert (summary.successes, summary.attempts) == (1, 1)
    assert 60 < summary.mean_length < 160
    episodes = opened(tmp_path / "set")
    assert (episodes.states.shape[1], episodes.actions.shape[1], episodes.fps) == (8, 7, 20)
    assert set(episodes.images) == {"observation.images.agentview", "observation.images.wrist"}
    assert np.abs(episodes.actions).max() <= 1.0

    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    item = LeRobotDataset("local/test", root=tmp_path / "set")[7]
    for camera, frames in episodes.images.items():
        image = (item[camera] * 255).round().byte().permute(1, 2, 0)
        assert np.array_equal(image.numpy(), frames[7])
    assert item["task"] == "pick up the milk and place it in the basket"


@needs_libero
@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("suite", PICK_AND_PLACE)
def test_libero_experts_succeed(suite: str):
    made = make_suite("libero", suite=suite, render_quality="fast")
    results = {}
    for task in made.select(PICK_AND_PLACE[suite]):
        simulation = made.make(task)
        results[task.name] = 0
        for index in range(3):
            simulation.reset(simulation.initial_state("train", index))
            expert = make_expert(task)
            for _ in range(task.max_steps):
                if simulation.step(expert.act(expert.read(simulation))):
                    results[task.name] += 1
                    break
        simulation.close()
    assert sum(results.values()) >= 0.8 * 3 * len(results), results
