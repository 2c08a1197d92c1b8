#!/usr/bin/env bash
# Figure 8: training time against items and their length; and against users and slots.
source "$(dirname "$0")/scale.sh"
case $SCALE in small) scale=small ;; full) scale=paper ;; esac
for task in movie_tagging tweet_paraphrase; do study efficiency "$task" --scale "$scale"; done
