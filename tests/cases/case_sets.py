"""What the cases about data sets and settings share: small sets, ways to change their files, the commands.

python tests/cases/case_sets.py CASE ...   runs cases of tests/cases in processes that share one start
"""

import contextlib
import io
import json
import os
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import WORK, WRONG, check, end, short
from test_episodes import INFO, make_episode, publish

__all__ = ["INFO", "WORK", "WRONG", "check", "end", "make_episode", "np", "pa", "pq", "short"]


def make(name="data", count=4, length=lambda number: 3 + number, size=24, info=INFO, episodes=None) -> Path:
    """Write a data set of the tests' episodes: 3, 4, 5, 6 frames; 0 and 3 are failures."""
    episodes = episodes or {i: make_episode(i, length=length(i), size=size) for i in range(count)}
    return publish(WORK / name, episodes, info)


def rewrite(root: Path, folder: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Put every parquet file of a folder through a function of its table."""
    place = root / folder
    for file in [place] if place.is_file() else sorted(place.rglob("*.parquet")):
        pq.write_table(change(pq.ParquetFile(file).read()), file)


def column(table: pa.Table, name: str, values) -> pa.Table:
    """Return a table with other values in a column, of the same type."""
    at = table.column_names.index(name)
    kind = table.schema.field(name).type
    return table.set_column(at, table.schema.field(name), pa.array(values, kind))


def without_episode_1(table: pa.Table) -> pa.Table:
    """Return a table without the rows of episode 1."""
    return table.filter(pa.array([number != 1 for number in table["episode_index"].to_pylist()]))


def set_info(root: Path, **values) -> None:
    """Change keys of meta/info.json."""
    file = root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def run(main: Callable, *arguments) -> tuple[object, str]:
    """Run a command in this process; return its exit code, or the exception as text, and what it said."""
    said, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
            code = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = ended.code
    except Exception as error:  # noqa: BLE001 - a traceback is an outcome
        code = f"traceback: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    lines = (said.getvalue() + errors.getvalue()).splitlines()
    return code, "\n".join(line for line in lines if "%|" not in line)


def train(roots, out: str, *more: str, config="configs/sft_pi0_config.json") -> tuple[object, str]:
    """Run pi0-train on data sets: paths, or the text of an entry of dataset_mixture.datasets."""
    from pi0.ript.scripts.train import main

    roots = roots if isinstance(roots, list) else [roots]
    entries = [str(root) if str(root).startswith("{") else f"{{root: {root}}}" for root in roots]
    return run(
        main,
        *(f"--config_path={config}", f"dataset_mixture.datasets=[{', '.join(entries)}]"),
        *("dataset_mixture.weights=null", "dataset_mixture.action_freq=null", "steps=2", "batch_size=4"),
        *(
            "val_freq=0",
            "log_freq=1",
            "save_freq=2",
            f"output_dir={WORK / out}",
            "exp_name=run",
            "device=cpu",
        ),
        *more,
    )


def train_value(roots, out: str, *more: str) -> tuple[object, str]:
    """Run pi0-train of a value function."""
    return train(
        roots,
        out,
        *("policy.normalization_mapping.ACTION=null", "policy.reward_config.C_neg=-10"),
        *("policy.reward_config.reward_normalizer=auto", "policy.reward_config.N_steps_look_ahead=2"),
        *("policy.reward_config.number_of_bins=11", *more),
        config="configs/value_pretrain_config.json",
    )


def advantage(value: Path, *arguments) -> tuple[object, str]:
    """Run pi0-advantage."""
    from pi0.ript.commands.advantage import main

    return run(main, "--value", value, "--device", "cpu", *arguments)


def viz(*arguments) -> tuple[object, str]:
    """Run pi0-dataset-viz."""
    from pi0.ript.commands.dataset_viz import main

    return run(main, *arguments)


def stats(*arguments) -> tuple[object, str]:
    """Run pi0-stats."""
    from pi0.ript.commands.stats import main

    return run(main, *arguments)


def is_refused(outcome: tuple[object, str], *words: str) -> bool:
    """Return whether a command ended with code 2 and a message that has all these words."""
    code, said = outcome
    return code == 2 and "Traceback" not in said and all(word.lower() in said.lower() for word in words)


def main(names: Sequence[str]) -> int:
    """Run cases one after the other, each in a fork of this process; print outcomes as JSON by name."""
    import lerobot.datasets.lerobot_dataset  # noqa: F401 - the heavy imports, once for all
    import test_data  # noqa: F401

    import pi0.ript.commands.advantage
    import pi0.ript.commands.dataset_viz
    import pi0.ript.labels.labelled_sets
    import pi0.ript.scripts.train
    import pi0.ript.supervised.trainer  # noqa: F401

    outcomes = {}
    for name in names:
        WORK.mkdir(exist_ok=True)  # the case before has removed it
        before = os.times()
        with io.TextIOWrapper(io.FileIO(os.memfd_create(name), "r+")) as log:
            if not (child := os.fork()):
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                _run_case(Path(__file__).with_name(f"{name}.py"))
            _, status = os.waitpid(child, 0)
            log.seek(0)
            after = os.times()
            seconds = (
                after.children_user + after.children_system - before.children_user - before.children_system
            )
            outcomes[name] = [os.waitstatus_to_exitcode(status), f"{log.read()}{seconds:.1f} s of CPU"]
    print(json.dumps(outcomes))
    return 0


def _run_case(path: Path) -> NoReturn:
    try:
        runpy.run_path(str(path))
        print("the case did not end with `end()`")
    except BaseException:  # noqa: BLE001 - a fork of the process must not go on behind the case
        traceback.print_exc()
    shutil.rmtree(WORK, ignore_errors=True)
    sys.stdout.flush()
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
