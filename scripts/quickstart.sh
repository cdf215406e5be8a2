#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The first minutes with Kc-MoE, offline apart from the package index, on two CPU cores.
#
#   bash scripts/quickstart.sh
#
# Sets up its own virtual environment (.venv), then labels a few lines with the model that ships. After
# that it shows how such a model is made: bundled comments -> parquet, pretraining that is stopped and goes
# on, fine-tuning on bundled reviews, evaluation, the same lines again. Everything is written below
# runs/quickstart, which is emptied first, so the script can be run again at any time.
set -euo pipefail
trap 'exit 130' INT  # a training that is stopped ends well, and the next step would begin
cd "$(dirname "$0")/.."
source scripts/environment.sh

OUT=runs/quickstart
STOP_AFTER_STEPS=100

say() { printf '\n== %s  [%dm%02ds]\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

# Steps in metrics.jsonl of a model directory; 0 before there is one.
steps_done() {
  local count
  count=$(grep -c '"split": "train"' "$1/metrics.jsonl" 2>/dev/null) || true
  echo "${count:-0}"
}

use_environment .venv
rm -rf "$OUT"

REVIEWS='진짜 재밌게 봤어요 또 보고 싶네요
돈이 아깝다 시간도 아깝고
배우들 연기가 너무 좋아서 끝까지 몰입했음
지루해서 중간에 껐다
기대 안 했는데 생각보다 괜찮네'

say "1. The model that ships (weights/tiny): praise or complaint, and a gap filled"
kcmoe predict --checkpoint=tiny --task=nsmc - <<<"$REVIEWS"
kcmoe predict --checkpoint=tiny --task=generate - <<<'오늘 본 영화는 <extra_id_0> 재미있었다'

say "2. The same from the beginning. Bundled comments to parquet: cleaned, deduplicated, shuffled"
kcmoe data prepare --sample --output="$OUT/data/comments" --validation=100

say "3. Pretrain tiny (14.4 M parameters), and stop it on the way with SIGTERM"
PRETRAIN=(
  kcmoe train --gin_file=configs/runs/pretrain_sample.gin --gin.MIXTURE_OR_TASK_NAME='"pretrain"'
  --gin.DATA_DIR="'$OUT/data'" --gin.MODEL_DIR="'$OUT/pretrain'"
)
"${PRETRAIN[@]}" &
TRAINING=$!
trap 'kill "$TRAINING" 2>/dev/null || true' EXIT
while kill -0 "$TRAINING" 2>/dev/null && (($(steps_done "$OUT/pretrain") < STOP_AFTER_STEPS)); do
  sleep 1
done
kill -TERM "$TRAINING"
wait "$TRAINING"
trap - EXIT

say "4. The same command goes on where it stopped"
"${PRETRAIN[@]}"

say "5. Fine-tune on the bundled reviews"
kcmoe train --gin_file=configs/runs/finetune_sample_reviews.gin --gin.MODEL_DIR="'$OUT/reviews'" \
  --gin.INITIAL_CHECKPOINT_PATH="'$OUT/pretrain/checkpoint_300'"

say "6. Evaluate on the held-out reviews, both ways"
kcmoe evaluate --gin.CHECKPOINT_PATH="'$OUT/reviews/checkpoint_500'" --split=validation

say "7. The five lines again, by the model just made"
kcmoe predict --checkpoint="$OUT/reviews" --task=sample_reviews - <<<"$REVIEWS"

say "Done. Numbers of this run; README.md says what to expect"
grep '"split": "eval"' "$OUT/pretrain/metrics.jsonl" "$OUT/reviews/metrics.jsonl" |
  sed -E -e 's/^[^:]*quickstart\/([a-z]+)\/[^{]*\{"step": ([0-9]+),/\1 step \2:/' \
    -e 's/^([^:]*):.*"cross_ent_loss": ([0-9.]+),(.*"accuracy": ([0-9.]+).*)?.*/\1: validation loss \2, accuracy \4/' \
    -e 's/, accuracy $//'
