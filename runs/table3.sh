#!/usr/bin/env bash
# Table 3: histories without answers, or without questions.
source "$(dirname "$0")/scale.sh"
for task in movie_tagging scholarly_title; do trained formats "$task" --newest "$items"; done
