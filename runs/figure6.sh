#!/usr/bin/env bash
# Figure 6: kinds of modules.
source "$(dirname "$0")/scale.sh"
rates=() # small: the study's own, which suit the embedded base
[ "$SCALE" = small ] || rates=(--rates 0.00001,0.0001,0.001)
for task in movie_tagging scholarly_title; do trained kinds "$task" --newest "$items" "${rates[@]}"; done
