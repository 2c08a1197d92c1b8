"""How alike users' modules are: cosine similarities of their parameters, and of what they add to the base's weights.

LoRA's a begins at random for each user and moves little. So two users' parameters are unlike, and so are their updates
b a, whose rows lie in the few directions of a: two users with the same gradients have a cosine of about R / I. Only
modules in the same frame are comparable, such as LoRA-XS's cores, whose frozen halves are the base's own.
Glossary: N users, R rank, I/O in/out features.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from oppu.evaluate.significance import LEVEL, SAMPLES, SEED

Floats = NDArray[np.float64]
Tensors = Mapping[str, NDArray[np.float32]]
"""A module's tensors by their names, as PEFT has them."""

_A, _B = ".lora_A.weight", ".lora_B.weight"


def parameter_similarity(modules: Sequence[Tensors]) -> Floats:
    """The mean over tensors t of cos(t_i, t_j), [N, N], as in the paper (appendix G); 0 for a tensor of zeros."""
    found = np.zeros((len(modules), len(modules)))
    for name in modules[0]:
        lines = np.stack([tensors[name].ravel() for tensors in modules]).astype(np.float64)
        found += _cosines(lines @ lines.T)
    return found / len(modules[0])


def update_similarity(modules: Sequence[Tensors]) -> Floats:
    """cos(U_i, U_j) of the updates U = (b a) of all layers, [N, N]; of LoRA modules of one scale.

    <b_i a_i, b_j a_j> = sum over (b_i^T b_j) * (a_i a_j^T), so that no product of the weights' own size is made.
    """
    products = np.zeros((len(modules), len(modules)))
    for name in (name for name in modules[0] if name.endswith(_A)):
        a = np.stack([tensors[name] for tensors in modules]).astype(np.float64)  # [N, R, I]
        b = np.stack([tensors[name.removesuffix(_A) + _B] for tensors in modules]).astype(np.float64)  # [N, O, R]
        outer = np.einsum("ior,jos->ijrs", b, b, optimize=True)
        products += (outer * np.einsum("iru,jsu->ijrs", a, a, optimize=True)).sum(axis=(2, 3))
    return _cosines(products)


def of_pairs(similarity: Floats) -> Floats:
    """The similarities of every two users, each pair once."""
    found: Floats = similarity[np.triu_indices(len(similarity), 1)]
    return found


def spread_interval(similarity: Floats, samples: int = SAMPLES, seed: int = SEED) -> tuple[float, float]:
    """Percentile interval of the standard deviation over pairs, by drawing users; nobody is paired with itself.

    nan with fewer than three users.
    """
    users = len(similarity)
    if users < 3:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    found = []
    for drawn in rng.integers(users, size=(samples, users)):
        first, second = np.triu_indices(users, 1)
        other = drawn[first] != drawn[second]
        if other.any():
            found.append(float(similarity[drawn[first], drawn[second]][other].std()))
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _cosines(products: Floats) -> Floats:
    """Products of every two divided by both lengths."""
    lengths = np.sqrt(np.diag(products))
    lengths[lengths == 0] = 1.0
    found: Floats = products / np.outer(lengths, lengths)
    return found
