#!/usr/bin/env bash
# Requirement 001: its acceptance commands, word for word, rung by rung.
# The text of the document begins below the line. Substitutions:
#   cd (to the project)           left out: the commands run in this repository
#   [script_name], [script]       every rung that the template is for, in turn
#   train_pi0_cfg_rl.yaml         as it is, with a toy, two tiny LIBERO tasks' worth of work and no GPU
#   Ctrl+C                        SIGINT after a while
# Added on the command line: fewer groups, states and steps, so that each run takes a minute.
set -eu -o pipefail
REPOSITORY=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-python}
OUTPUT=${OUTPUT:-$PWD/output}
cd "$REPOSITORY"
export OMP_NUM_THREADS=1 PYTHONPATH=$REPOSITORY
small="task.max_episode_length=20 task.num_workers=0 task.num_parallel_envs=4 task.warm_start.episodes=2
    task.warm_start.steps=5 task.warm_start.num_workers=0 algo.rloo_batch_size=2 algo.data_batch_size=2
    algo.max_sampling_attempts=2 algo.num_epochs=1 dataset.num_init_states=2 training.num_train_steps=1
    eval.rollouts_per_task=2 eval.n_video=1 output_dir=$OUTPUT warm_start_dir=$OUTPUT/warm_start"
substitutes() {
    printf ' %s' $small
    case "$*" in
        *train_pi0_cfg_rl.yaml*) printf ' %s' policy_path=toy device=cpu policy.freeze=none policy.dtype=null \
            policy.gradient_checkpointing=false policy.n_action_steps=null task.benchmark_name=metaworld ;;
    esac
}
python() { "$PYTHON" "$@" $(substitutes "$@"); }
torchrun() { "$PYTHON" -m torch.distributed.run --standalone "$@" $(substitutes "$@"); }
timeout() { shift; "$@"; }
# ------------------------------------------------------------------------------------------------------------
# 1.3
python 9_train_with_config.py --config_path pi0/ript/config/debug_train_pi0.yaml
# 2.3
CUDA_VISIBLE_DEVICES=0 python 10_train_with_distributed.py --config_path pi0/ript/config/debug_train_pi0.yaml
CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 10_train_with_distributed.py --config_path pi0/ript/config/train_pi0_cfg_rl.yaml
# 3.3
python 11_train_with_logging.py --config_path pi0/ript/config/debug_train_pi0.yaml
# 4.3
python 12_train_with_dataset.py --config_path pi0/ript/config/debug_train_pi0.yaml
# 5.3
python 13_train_production_ready.py --config_path pi0/ript/config/train_pi0_cfg_rl.yaml
python 13_train_production_ready.py --config_path pi0/ript/config/train_pi0_cfg_rl.yaml --resume
CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 13_train_production_ready.py --config_path pi0/ript/config/train_pi0_cfg_rl.yaml
# 6.2
python train_ript_pi0_final.py --config_path pi0/ript/config/train_pi0_cfg_rl.yaml
python pi0/ript/scripts/train_ript_pi0.py --config_path pi0/ript/config/train_pi0_cfg_rl.yaml
# Test case template
for script_name in 9_train_with_config 13_train_production_ready train_ript_pi0_final; do
    python "$script_name".py --config_path pi0/ript/config/minimal_test.yaml
done
timeout 300 python 13_train_production_ready.py --config_path pi0/ript/config/train_pi0_cfg_rl.yaml
# Debugging
export DEBUG_SAVE_PROCESSED=1
export PI0_DEBUG_SAVE_VIDEO=true
export TOKENIZERS_PARALLELISM=false
python 13_train_production_ready.py --config_path pi0/ript/config/debug_train_pi0.yaml 2>&1 | tee "$OUTPUT/debug.log"
