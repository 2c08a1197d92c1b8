#!/usr/bin/env bash
# Figure 3: users of different activity.
source "$(dirname "$0")/scale.sh"
for task in movie_tagging tweet_paraphrase; do trained activity "$task"; done
