"""SparseGPT and Wanda written out from their formulas, one weight after another: slow, and sharing nothing with the library."""

import numpy as np


def hessian(x, damp=0.01):
    """``x`` [tokens, in] -> H with the damping and the treatment of dead inputs of the paper's algorithm."""
    h = x.T @ x
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    return h + damp * np.mean(np.diag(h)) * np.eye(len(h)), dead


def factor(h):
    """Row i of the result holds the OBS quantities of the problem in which columns 0..i-1 are settled."""
    n = len(h)
    u = np.zeros((n, n))
    for i in range(n):
        inverse = np.linalg.inv(h[i:, i:])
        u[i, i:] = inverse[0] / np.sqrt(inverse[0, 0])
    return u


def smallest(scores, count):
    """The positions of the ``count`` smallest scores; among equals the later positions."""
    flat = scores.reshape(-1)
    return sorted(range(flat.size), key=lambda i: (flat[i], -i))[:count]


def sparsegpt(w, x, density, block, damp=0.01, nm=None, by_row=False, tile=(1, 1)):
    """(mask, weights, sum of squared errors) of one layer ``w`` [out, in]."""
    h, dead = hessian(x, damp)
    u = factor(h)
    w = w.copy()
    w[:, dead] = 0
    rows, cols = w.shape
    mask = np.ones((rows, cols), dtype=bool)
    loss, removed = 0.0, 0
    for c0 in range(0, cols, block):
        c1 = min(c0 + block, cols)
        for i in range(c0, c1):
            if nm and i % nm[1] == 0:
                for r in range(rows):
                    score = np.array([w[r, j] ** 2 / u[j, j] ** 2 for j in range(i, i + nm[1])])
                    for j in smallest(score, nm[1] - nm[0]):
                        mask[r, i + j] = False
            elif not nm and i == c0:
                score = w[:, c0:c1] ** 2 / np.diag(u)[c0:c1] ** 2
                if by_row:
                    count = int(np.floor((1 - density) * c1 + 1e-9)) - removed
                    for r in range(rows):
                        mask[r, c0 + np.array(smallest(score[r], count), dtype=int)] = False
                    removed += count
                else:
                    th, tw = tile
                    tiled = score.reshape(rows // th, th, (c1 - c0) // tw, tw).sum((1, 3))
                    count = int(np.floor((1 - density) * (rows // th) * (c1 // tw) + 1e-9)) - removed
                    for at in smallest(tiled, count):
                        r, c = divmod(at, tiled.shape[1])
                        mask[r * th : (r + 1) * th, c0 + c * tw : c0 + (c + 1) * tw] = False
                    removed += count
            for r in range(rows):
                q = w[r, i] if mask[r, i] else 0.0
                e = (w[r, i] - q) / u[i, i]
                w[r, i] = q
                w[r, i + 1 :] -= e * u[i, i + 1 :]
                loss += e * e
    return mask, w, loss


def wanda(w, x, density=None, nm=None):
    """The mask of one layer: per row, or per run of ``nm[1]`` inputs."""
    score = np.abs(w) * np.sqrt((x**2).sum(0))
    mask = np.ones(w.shape, dtype=bool)
    for r in range(w.shape[0]):
        if nm is None:
            mask[r, smallest(score[r], int(np.floor(w.shape[1] * (1 - density) + 1e-9)))] = False
            continue
        for c in range(0, w.shape[1], nm[1]):
            mask[r, c + np.array(smallest(score[r, c : c + nm[1]], nm[1] - nm[0]))] = False
    return mask
