#!/usr/bin/env bash
# Figure 5: one question, seen by every method.
source "$(dirname "$0")/scale.sh"
study case movie_tagging "${sizes[@]}"
