#!/usr/bin/env bash
# VBench's standard suite from prompts to totals: the clips of its 944 prompts (5 each, 25 for temporal_flickering),
# its 16 dimensions, and the quality, semantic and total scores. The same command goes on where it was stopped.
#
#   scripts/vbench_standard.sh OUT MODEL METHOD [SETTINGS]
#   scripts/vbench_standard.sh outputs/vbench mochi oseg '{offload: model, steps: 64}'
#
# SETTINGS is YAML, as in the `settings` of a sweep. Needs a GPU of the model's size and days, or several GPUs.
# object_class, multiple_objects, color and spatial_relationship need `oseg-video vbench setup --detectron2` first.
set -euo pipefail
if [ $# -lt 3 ] || [ $# -gt 4 ]; then
  sed -n '5,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
out=$1 model=$2 method=$3 settings=${4:-"{}"}

environment=$(oseg-video vbench setup --quiet)
oseg-video vbench check >&2 # before days of sampling
suite=$(echo "$environment"/lib/python3*/site-packages/vbench/VBench_full_info.json)
mkdir -p "$out"
recipe() { # name, number of seeds, dimensions
  cat > "$out/$1.yaml" <<YAML
prompts: {vbench: "$suite", dimensions: [$3]}
seeds: {first: 0, count: $2}
methods: [$method]
models: [$model]
settings: $settings
out: "$out/clips"
YAML
}
recipe flickering 25 temporal_flickering
recipe others 5 "subject_consistency, background_consistency, motion_smoothness, dynamic_degree, aesthetic_quality,
  imaging_quality, object_class, multiple_objects, human_action, color, spatial_relationship, scene,
  appearance_style, temporal_style, overall_consistency"
for name in flickering others; do
  oseg-video sweep "$out/$name.yaml"
done
oseg-video evaluate "$out/clips" --metrics vbench_standard --out "$out/vbench.json" "$out/vbench.md" --overwrite
