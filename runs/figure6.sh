#!/usr/bin/env bash
# Figure 6: kinds of modules.
source "$(dirname "$0")/scale.sh"
for task in movie_tagging scholarly_title; do trained kinds "$task" --newest "$items"; done
