#!/usr/bin/env bash
# Figures 7 and 9, appendix G: how alike users' modules are; classification against generation.
source "$(dirname "$0")/scale.sh"
study similarity movie_tagging "${sizes[@]}" --other-task scholarly_title --other-data "$DATA/scholarly_title"
