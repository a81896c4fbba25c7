#!/usr/bin/env bash
# Requirement 000: the three ways to start a command, which are one. Run after requirement_002.sh, or beside any
# data set at data/mine. Substitutions:
#   opentau-train                     pi0-train
#   opentau.scripts.launch            pi0.ript.commands.launch
#   src/opentau/scripts/train.py      pi0/ript/scripts/train.py
#   config.json                       a toy on data/mine
# Added on the command line: a name for each run.
set -eu -o pipefail
REPOSITORY=$(builtin cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1 PYTHONPATH=$REPOSITORY
printf '%s' '{"dataset_mixture": {"datasets": [{"root": "data/mine"}], "num_workers": 0}, "steps": 3,
    "batch_size": 4, "log_freq": 1, "device": "cpu"}' >config.json
number=0
named() { number=$((number + 1)); printf -- '--exp_name=way-%d' "$number"; }
opentau-train() { named >name; "$PYTHON" -m pi0.ript.commands.launch train "$@" "$(<name)"; }
python() {
    named >name
    test "$1 $2" = '-m opentau.scripts.launch'
    shift 2
    "$PYTHON" -m pi0.ript.commands.launch "$@" "$(<name)"
}
accelerate() {
    named >name
    test "$1 $2" = 'launch src/opentau/scripts/train.py'
    shift 2
    "$PYTHON" -m accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no \
        --dynamo_backend no "$REPOSITORY/pi0/ript/scripts/train.py" "$@" "$(<name)"
}
# ------------------------------------------------------------------------------------------------------------
# 方式1: 使用自定义命令（推荐）
opentau-train --config_path=config.json

# 方式2: 直接使用 Python 模块
python -m opentau.scripts.launch train --config_path=config.json

# 方式3: 直接调用脚本（需要手动处理 accelerate）
accelerate launch src/opentau/scripts/train.py --config_path=config.json
