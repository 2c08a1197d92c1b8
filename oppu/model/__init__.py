"""What computes: bases, the bank of modules, packing, decoding.

torch and transformers are imported here first, with Python's garbage collector paused: they make a million objects that
stay for good, and looking through them again and again would cost a second of each start.
"""

import gc

_was_enabled = gc.isenabled()
gc.disable()
try:
    import torch  # noqa: F401
    import transformers.modeling_utils
    import transformers.models.auto  # noqa: F401
finally:
    if _was_enabled:
        gc.enable()
    gc.freeze()  # what is there now is never looked through again
