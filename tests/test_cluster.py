"""Clusters: the batch file of SLURM, the job of Kubernetes, and what a number of GPUs is computed to do."""

import os
import signal
import stat
import subprocess
import sys
from itertools import pairwise

import cluster_table
import drifting
import kubernetes_validate
import machines
import pytest
import yaml
from test_machines import weights, words_of

from pi0.ript.checkpoint.files import published
from pi0.ript.commands import launch
from pi0.ript.config import load_config_from_yaml
from pi0.ript.recap import RecapConfig
from pi0.ript.recap.budget import PlannedWork
from pi0.ript.recap.cluster_plan import (
    NETWORK,
    ModelCosts,
    chunk_seconds,
    exchange_seconds,
    run_hours,
    update_seconds,
)
from pi0.ript.recap.gpus import GPUS

ROOT = machines.ROOT
SBATCH = ROOT / "configs/cluster/slurm.sbatch"
JOB = ROOT / "configs/cluster/kubernetes.yaml"


# Files ------------------------------------------------------------------------------------------------------


def test_the_kubernetes_job_fits_its_schema():
    documents = list(yaml.safe_load_all(JOB.read_text()))
    assert [document["kind"] for document in documents] == ["Service", "Job"]
    for document in documents:
        kubernetes_validate.validate(document, "1.30", strict=True)
    documents[1]["spec"]["template"]["spec"]["restart"] = "OnFailure"
    with pytest.raises(kubernetes_validate.ValidationError, match="restart"):
        kubernetes_validate.validate(documents[1], "1.30", strict=True)


def test_the_kubernetes_job_holds_together():
    service, job = yaml.safe_load_all(JOB.read_text())
    pod, (container,) = job["spec"]["template"], job["spec"]["template"]["spec"]["containers"]
    command, name = container["args"][0], job["metadata"]["name"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    port = service["spec"]["ports"][0]["port"]
    assert f"--rdzv-endpoint={name}-0.{service['metadata']['name']}:{port}" in command
    assert f"--nnodes=1:{job['spec']['completions']}" in command
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in command
    grace = {entry["name"]: entry["value"] for entry in container["env"]}["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert int(grace) < pod["spec"]["terminationGracePeriodSeconds"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    subprocess.run(["sh", "-n", "-c", command], check=True)


STAND_INS = {
    "srun": """shift
[ "$SRUN_CPUS_PER_TASK" = 2 ] || exit 9
"$@" &
child=$!
trap 'kill -USR1 "$child"' USR1
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
exit "$code"
""",
    "scontrol": """[ "$1" = show ] && echo localhost
[ "$1" = requeue ] && echo "$2" >> "$REQUEUED"
exit 0
""",
}


@pytest.mark.slow
def test_a_slurm_job_stops_before_its_time_is_over_is_queued_again_and_goes_on(tmp_path):
    drifting.prepare(tmp_path)
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(stat.S_IRWXU)
    log, requeued = tmp_path / "log", tmp_path / "requeued"
    environment = {
        **machines.surroundings(),
        **{"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, "REQUEUED": str(requeued)},
        **{"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2"},
        **{"SLURM_CPUS_PER_TASK": "2"},
        **{"SLURM_JOB_ID": "417", "LAST_CALL": "1", "PORT": str(20000 + os.getpid() % 9999), "SLOW": "1"},
    }
    words = words_of("13", tmp_path, "job", "training.num_train_steps=3")
    command = ["bash", str(SBATCH), str(ROOT / "tests/machines.py"), *words]
    run_dir = tmp_path / "out/job"
    with log.open("w") as output:
        job = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        machines.wait_for(lambda: published(run_dir), "a checkpoint", log)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(120) == 0, log.read_text()[-3000:]
        assert requeued.read_text() == "417\n"
        assert "stopped at iteration" in log.read_text()
        assert not (run_dir / "results.json").exists()
        again = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False)
    assert again.returncode == 0, log.read_text()[-3000:]
    assert "begun by this launch of torchrun, which goes on with it" in log.read_text()
    assert requeued.read_text() == "417\n", "it was not queued a third time"
    assert weights(run_dir)
    assert [row["iteration"] for row in drifting.outcome(run_dir)["rows"]] == [0, 1, 2]


# Formulas ---------------------------------------------------------------------------------------------------

COSTS = ModelCosts(
    **{"trained": 10, "acting": 6, "expert": 1},
    **{"step_flops": 9 * 10**12, "forward_flops": 2 * 10**12, "chunk_flops": 3 * 10**12},
)


def test_rates_of_more_gpus_end_where_the_network_begins():
    gpu = GPUS["H100"]
    seconds = [update_seconds(COSTS, gpu, count, 256) for count in (1, 2, 4, 8)]
    for one, two in pairwise(seconds):
        assert one == pytest.approx(2 * two)
    assert seconds[0] == pytest.approx(256 * 9e12 / (0.35 * 989e12))
    assert exchange_seconds(gpu, 1, 10**9) == 0
    assert exchange_seconds(gpu, 8, 10**9) == pytest.approx(2 * 7 / 8 * 1e9 / gpu.link)
    assert exchange_seconds(gpu, 16, 10**9) == pytest.approx(2 * 15 / 16 * 1e9 / NETWORK)
    assert exchange_seconds(GPUS["L40S"], 16, 10**9) == pytest.approx(2 * 15 / 16 * 1e9 / GPUS["L40S"].link)


def test_a_small_batch_acts_as_fast_as_weights_are_read():
    tiny = ModelCosts(10, 6_000_000_000, 100_000_000, 1, 1, 1)
    gpu = GPUS["H100"]
    assert chunk_seconds(tiny, gpu, slots=1, passes=1) == pytest.approx(7e9 / gpu.bandwidth)
    one, two = (chunk_seconds(COSTS, gpu, slots=16, passes=passes) for passes in (1, 2))
    assert two == pytest.approx(2 * one) == pytest.approx(2 * 16 * 3e12 / (0.25 * 989e12))


def test_hours_follow_the_work():
    config = load_config_from_yaml(ROOT / "configs/recap_libero.yaml", schema=RecapConfig)
    work = PlannedWork(800, 400, 520, policy_updates=100, sft_updates=40, value_updates=10)
    hours = run_hours(config, work, COSTS, GPUS["H100"], 8)
    assert hours.policy == pytest.approx(100 * 32 * 9e12 / (0.35 * 989e12) / 3600)
    assert hours.value == pytest.approx(10 * 32 * 2e12 / (0.35 * 989e12) / 3600)
    # 100 episodes of a GPU, 52 chunks each; 8 workers simulate 16 slots, and act on them with guidance
    acting = 2 * 16 * 3e12 / (0.25 * 989e12)
    assert hours.recording == pytest.approx(100 * 52 / 16 * (2 * 10 * 0.1854 + acting) / 3600)
    assert hours.judging == pytest.approx(50 * 52 / 16 * (2 * 10 * 0.0356 + acting) / 3600)
    assert hours.total == hours.policy + hours.value + hours.recording + hours.judging


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus=8", "--gpu=H10", "--config_path=configs/recap_libero.yaml"], "did you mean 'H100'"),
        (["--gpus=8", "--gpu=H100", "--config_path=configs/demo.yaml"], "found policy_path: toy"),
        (["--gpus=8", "--gpu=H100", "--config_path=configs/recap_libero.yaml", "a.b=1"], "a.b"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert launch.run("recap", ["--plan", *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_every_gpu_has_a_source():
    text = (ROOT / "docs/cluster.md").read_text()
    for name, gpu in GPUS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        figures = (gpu.memory / 1e9, gpu.flops / 1e12, gpu.bandwidth / 1e12, gpu.link / 1e9)
        for figure in figures:
            assert f" {figure:g} " in row.replace("|", " "), (name, figure)
        assert "https://" in row


@pytest.mark.slow
def test_the_table_is_computed(capsys, monkeypatch):
    text = (ROOT / "docs/cluster.md").read_text()
    rows = list(cluster_table.rows())
    assert "\n".join(rows) in text, "\n".join(rows)
    monkeypatch.chdir(ROOT)
    words = ["--plan", "--gpus=8", "--gpu=H100", "--config_path=configs/recap_libero.yaml"]
    assert launch.run("recap", [*words, "--price-per-hour=2.5"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("computed, not measured: 8 x H100 (80 GB, 989 TFLOP/s")
    hours = float(said.split("together ")[1].split()[0])
    assert abs(float(said.split("price: ")[1].split()[0]) - 8 * 2.5 * hours) <= 1.1
    assert f"| {hours} h |" in next(row for row in rows if row.startswith("| 8 |"))
