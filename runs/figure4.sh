#!/usr/bin/env bash
# Figure 4: numbers of retrieved items.
source "$(dirname "$0")/scale.sh"
for task in movie_tagging scholarly_title; do trained retrieved "$task" --newest "$items" --k 0,1,2,4; done
