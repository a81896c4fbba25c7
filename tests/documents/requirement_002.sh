#!/usr/bin/env bash
# Requirement 002: the fine-tuning command, word for word. Substitutions:
#   uv run python gr00t/experiment/launch_finetune.py   pi0-train
#   nvidia/GR00T-N1.6-3B                                toy
#   <DATASET_PATH>                                      data/mine, recorded here
#   <MODALITY_CONFIG_PATH>, <OUTPUT_PATH>               my_modality.py, output
# Changed: --max-steps and --save-steps 2 for 2000, --global-batch-size 4 for 32, so that it takes seconds.
set -eu -o pipefail
REPOSITORY=$(builtin cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1 PYTHONPATH=$REPOSITORY
"$PYTHON" -m pi0.ript.demonstrations.command --env metaworld --task button-press-v3 --operator hesitating \
    --episodes 2 --image-size 32 --output data/mine
uv() {
    test "$1 $2 $3" = 'run python gr00t/experiment/launch_finetune.py'
    shift 3
    set -- $(printf '%s\n' "$@" | sed -e 's#^nvidia/GR00T-N1.6-3B$#toy#' -e 's#^2000$#2#' -e 's#^32$#4#')
    "$PYTHON" -m pi0.ript.commands.launch train "$@"
}
DATASET_PATH=data/mine MODALITY_CONFIG_PATH=my_modality.py OUTPUT_PATH=output
# ------------------------------------------------------------------------------------------------------------
# 设置 GPU 数量
export NUM_GPUS=1

CUDA_VISIBLE_DEVICES=0 uv run python \
  gr00t/experiment/launch_finetune.py \
  --base-model-path nvidia/GR00T-N1.6-3B \
  --dataset-path $DATASET_PATH \
  --embodiment-tag NEW_EMBODIMENT \
  --modality-config-path $MODALITY_CONFIG_PATH \
  --num-gpus $NUM_GPUS \
  --output-dir $OUTPUT_PATH \
  --save-total-limit 5 \
  --save-steps 2000 \
  --max-steps 2000 \
  --use-wandb \
  --global-batch-size 32 \
  --color-jitter-params brightness 0.3 contrast 0.4 saturation 0.5 hue 0.08 \
  --dataloader-num-workers 4
