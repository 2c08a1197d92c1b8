#!/usr/bin/env bash
# Figure 5: one question, seen by every method.
source "$(dirname "$0")/scale.sh"
trained case movie_tagging --newest "$items"
