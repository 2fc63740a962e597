#!/usr/bin/env bash
# Make everything that `unblemish demo` ships: render the sample parts, train a small model on the
# normal ones, export it, shrink it, calibrate it, and choose eight parts to show.
#
#     bash examples/make_demo_bundle.sh [WORK_FOLDER]
#
# About 15 minutes on 2 idle cores. Needs: pip install '.[train,report]'. The pictures are the same
# each time; the trained weights differ from machine to machine.
set -euo pipefail
cd "$(dirname "$0")/.."

work="${1:-runs/demo}"
python="${PYTHON:-python}"
data=src/unblemish/demo_data
mkdir -p "$work"

[ -d "$work/parts" ] || "$python" examples/render_parts.py "$work/parts" --calibrate 150
[ -f "$work/parts.pt" ] || "$python" -m unblemish train --normals "$work/parts/train/good" \
    --out "$work/parts.pt" --model vae --size 128 --width 4 --latent 20 --augment none \
    --steps 600 --seed 1
"$python" -m unblemish export "$work/parts.pt" --out "$work/parts.bundle"
"$python" examples/shrink_bundle.py "$work/parts.bundle"
"$python" -m unblemish calibrate "$work/parts.bundle" --normals "$work/parts/calibrate/good" \
    --false-reject 0.01

# Parts that neither training nor calibration has seen, chosen by eye: one or two of each kind, with
# defects that a reader can see too.
rm -rf "$work/show" "$data"
"$python" examples/render_parts.py "$work/show" --train 0 --calibrate 0 --good 2 --per-defect 5 \
    --seed 2024
mkdir -p "$data/images" "$data/ground_truth"
cp -r "$work/parts.bundle" "$data/parts.bundle"
for part in good/0000 good/0001 scratch/0001 scratch/0004 dent/0001 stain/0001 chip/0004 crack/0001; do
    mkdir -p "$data/images/${part%/*}" "$data/ground_truth/${part%/*}"
    cp "$work/show/test/$part.png" "$data/images/$part.png"
    mask="$work/show/ground_truth/${part}_mask.png"
    [ ! -f "$mask" ] || cp "$mask" "$data/ground_truth/${part}_mask.png"
done
rmdir "$data/ground_truth/good"
du -sh "$data"
"$python" -m unblemish demo --out "$work/out"
