#!/usr/bin/env bash
# Figures 7 and 9, appendix G: how alike users' modules are; classification against generation.
source "$(dirname "$0")/scale.sh"
trained similarity movie_tagging --newest "$items" --other-task scholarly_title --other-data "$DATA/scholarly_title"
