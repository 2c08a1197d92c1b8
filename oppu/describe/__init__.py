"""Users' histories -> textual profiles in the store, counted or written by a model; and from there into prompts."""
