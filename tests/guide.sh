#!/bin/sh
# The guide's whole flow (requirement 004): SFT, a value function, then one iteration of offline RL. With
# SCALE=toy (the default) it takes minutes and teaches nothing; SCALE=full is the embedded default as the
# configurations have it. Everything is written below the present directory; CONFIGS says where the JSON files
# are, PYTHON which interpreter.
set -eu
PYTHON=${PYTHON:-python}
CONFIGS=${CONFIGS:-configs}
export OMP_NUM_THREADS=1

small_demos='' small_train='' small_eval='' evaluated=''
if [ "${SCALE:-toy}" = toy ]; then
    small_demos='--episodes 10'
    small_train='--steps=6 --save_freq=3 --val_freq=3 --log_freq=1 --batch_size=8'
    evaluated='--eval_freq=6 --env.type=metaworld --env.task=button-press-v3 --env.episode_length=20
        --eval.n_episodes=2 --eval.batch_size=2'
    small_eval='--eval.num_episodes=4 --env.num_envs=4 --env.episode_length=20 --eval.save_videos=false'
fi
train() { $PYTHON -m pi0.ript.commands.launch train "$@"; }

echo '== Demonstrations'
$PYTHON -m pi0.ript.demonstrations.command --env metaworld --task button-press-v3 --operator hesitating \
    --episodes 40 $small_demos --output data/demonstrations

echo '== Stage 1: SFT'
train --config_path="$CONFIGS/sft_pi0_config.json" $small_train $evaluated
SFT_CHECKPOINT=outputs/train/sft_pi0

echo '== Stage 2: value function'
train --config_path="$CONFIGS/value_pretrain_config.json" $small_train
VALUE_CHECKPOINT=outputs/train/value_pretrain

echo '== Stage 3.1: rollouts'
$PYTHON -m pi0.ript.commands.launch eval --config_path="$CONFIGS/rollout_config.json" \
    --policy.pretrained_path=$SFT_CHECKPOINT $small_eval

echo '== Stage 3.2: value function, fine-tuned'
train --config_path="$CONFIGS/value_finetune_config.json" --policy.pretrained_path=$VALUE_CHECKPOINT $small_train
VALUE_FINETUNE_CHECKPOINT=outputs/train/value_finetune

echo '== Stage 3.3: advantages'
$PYTHON -m pi0.ript.commands.advantage --config_path=$VALUE_FINETUNE_CHECKPOINT --batch_size=20 \
    --dataloader_batch_size=20 --dataset_mixture="$CONFIGS/advantage_calc_config.json" --device=cpu |
    tee advantages.txt
EPSILON_THRESHOLD=$(sed -n 's/.*070th percentile: //p' advantages.txt)

echo '== Stage 3.4: policy, fine-tuned by advantage'
train --config_path="$CONFIGS/pi0_finetune_config.json" --policy.pretrained_path=$SFT_CHECKPOINT \
    --policy.advantage_threshold="$EPSILON_THRESHOLD" $small_train
SFT_CHECKPOINT=outputs/train/pi0_finetune
echo "done: $SFT_CHECKPOINT"
