"""A person's text in plain words, by rule: what a rewriter would be given to bring back into the person's style.

Where a history holds finished texts alone, this makes the pairs (plain, own) that paraphrasing is learnt from, as style
transfer makes them by paraphrasing (Krishna, Wieting and Iyyer 2020). Rules for informal English; other languages lose
marks, links and capitals alone.
"""

import html
import re

_DROPPED = re.compile(
    r"""
      https?://\S+ | \bwww\.\S+                 # links
    | ^(?:RT\s+)?(?:\.?@\w+[:,]?\s*)+          # who is spoken to, at the beginning
    | (?:[:;=]|(?<!\w)[8x])[-o*']?[)(\]\[dp/\\|3*]+(?!\w)  # emoticons, but not the end of (max)
    | <3+
    | \b(?:lo+l+|lmao|lmfao|rofl|(?:ha){2,}h?|(?:he){2,}h?|x+o+x+o*|omg)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SYMBOLS = re.compile(r"[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff]")  # arrows, signs, emoji
_LONG = re.compile(r"([a-z])\1{2,}")
_MARKS = re.compile(r"\s*([.,!?…])[.,!?…\s]*")
_SHORT = {
    "u": "you", "ur": "your", "r": "are", "im": "i'm", "ive": "i've", "id": "i'd", "dont": "don't", "cant": "cannot",
    "can't": "cannot", "didnt": "didn't", "doesnt": "doesn't", "isnt": "isn't", "wasnt": "wasn't", "wont": "won't",
    "thats": "that's", "whats": "what's", "gonna": "going to", "wanna": "want to", "gotta": "have to",
    "cuz": "because", "coz": "because", "bc": "because", "pls": "please", "plz": "please", "thx": "thanks",
    "tmrw": "tomorrow", "ppl": "people", "ya": "you", "yea": "yes", "yeah": "yes", "nite": "night", "thru": "through",
    "w/": "with", "b4": "before", "gr8": "great", "idk": "i don't know", "btw": "by the way", "&": "and",
    "kinda": "kind of", "tho": "though",
}  # fmt: skip


def plain_words(text: str) -> str:
    """`text` without handles in front, links, emoticons, laughter, long letters, repeated marks and capitals.

    Common short forms are written out, and it ends with a full stop or its question mark. Where nothing would be left,
    `text` itself.
    """
    words = _SYMBOLS.sub(" ", _DROPPED.sub(" ", html.unescape(text))).lower().replace("#", "").replace("@", "")
    words = _LONG.sub(r"\1", words)
    words = _MARKS.sub(lambda found: ("." if found[1] in "!…" else found[1]) + " ", words)
    words = " ".join(_written_out(word) for word in words.split()).strip(' .,-~*"')
    return f"{words[0].upper()}{words[1:]}{'' if words.endswith('?') else '.'}" if words else text


def _written_out(word: str) -> str:
    bare = word.rstrip(".,?")
    return _SHORT.get(bare, bare) + word[len(bare) :]
