"""RQ-VAE: one vector per item in; codes, the codebooks and the encoder that they belong to out.

TIGER, arXiv:2305.05065, section 3.1. With z = encoder(x), r_1 = z, c_l = argmin_k |r_l - e_lk|,
r_(l+1) = r_l - e_l(c_l) and q = sum_l e_l(c_l):

    loss = |x - decoder(q)|^2 + sum_l |sg(r_l) - e_l(c_l)|^2 + 0.25 |r_l - sg(e_l(c_l))|^2

where sg stops the gradient, and that of the decoder goes from q straight through to z.

Differs from the paper: Adam in place of Adagrad, and a step count in place of 20,000 epochs; the
first tenth of the steps trains encoder and decoder without codes, so that k-means, from which every
codebook starts, clusters latents that say something; a code that no item of two passes took becomes
the residual of a random item (until the last tenth of the steps).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from recast.items.quantize import nearest_codes, require_enough, require_finite, rq_kmeans
from recast.types import RecastError

_HIDDEN = (512, 256, 128)  # TIGER, section 4.1; the decoder has them the other way round
_LATENT = 32  # the same
_COMMITMENT = 0.25  # the same
_BATCH = 1024  # the same
STEPS, LR = 2000, 1e-3
"""Unless others are asked for: see docs/log.md, 2026-11-26, "what makes codes"."""
_WARM_UP = 0.1
_ROWS = 2**13  # vectors encoded at a time

Weights = dict[str, Tensor]
"""`0.weight`, `0.bias`, `1.weight`, ... of an MLP with ReLU; an encoder has the `mean` and the
`deviation` of its vectors too."""


class RQVAE(NamedTuple):
    """What was trained."""

    codes: Int[Tensor, "I L"]
    latents: Float[Tensor, "I Z"]
    """What the codes are nearest to."""
    codebooks: list[Float[Tensor, "_K Z"]]
    encoder: Weights


def rq_vae(
    vectors: Float[Tensor, "I D"],
    num_levels: int,
    codebook_size: int,
    seed: int,
    *,
    steps: int,
    lr: float,
    say: Callable[[str], None] = print,
) -> RQVAE:
    """Train on the vectors and quantize them. `say` gets how far it is and which codebooks lie
    half idle. The same seed gives the same codes on the same number of threads.

    Raises `RecastError` for vectors that are not finite, for fewer items than codes, for a loss
    that is no longer finite and for a codebook of which nothing is left.
    """
    require_finite(vectors, "embeddings")
    require_enough(len(vectors), codebook_size)
    draw = torch.Generator().manual_seed(seed)
    mean = vectors.mean(0)
    deviation = (vectors - mean).square().mean().sqrt()
    scaling = {"mean": mean, "deviation": deviation if deviation > 0 else torch.ones(())}
    widths = (vectors.shape[1], *_HIDDEN, _LATENT)
    encoder, decoder = _layers(widths, draw), _layers(widths[::-1], draw)
    books: list[Tensor] = [torch.zeros(codebook_size, _LATENT) for _ in range(num_levels)]
    optimizer = torch.optim.Adam([*encoder.values(), *decoder.values()], lr)
    first = max(int(steps * _WARM_UP), 1)
    batch = min(_BATCH, len(vectors))
    every = 2 * math.ceil(len(vectors) / batch)
    taken = torch.zeros(num_levels, codebook_size, dtype=torch.long)
    for step in range(steps):
        if step == first:
            latents = encode(encoder | scaling, vectors)
            _, books = rq_kmeans(latents, num_levels, codebook_size, seed)
            books = [book.requires_grad_() for book in books]
            optimizer.add_param_group({"params": books})
        rows = torch.randint(len(vectors), (batch,), generator=draw)
        scaled = (vectors[rows] - mean) / scaling["deviation"]
        latent = _mlp(encoder, scaled)
        loss, quantized = torch.zeros(()), latent
        if step >= first:
            codes, residuals, loss, quantized = _quantize(latent, books)
            taken.scatter_add_(1, codes.T, torch.ones_like(codes.T))
            if (step - first + 1) % every == 0 and step < (1 - _WARM_UP) * steps:
                _reset_dead(books, taken, residuals, draw)
                taken.zero_()
        error = (_mlp(decoder, quantized) - scaled).square().sum(1).mean()
        if not bool((error + loss).isfinite()):
            raise RecastError(
                f"the RQ-VAE's loss is not finite at step {step}: lower rq_vae_lr {lr:g}"
            )
        optimizer.zero_grad()
        (error + loss).backward()
        optimizer.step()
        if (step + 1) % max(steps // 4, 1) == 0:
            left = float(error.detach()) / vectors.shape[1]
            say(f"RQ-VAE {step + 1}/{steps}: {left:.0%} of the variance is left over")
    encoder = {name: weight.detach() for name, weight in encoder.items()} | scaling
    codebooks = [book.detach() for book in books]
    latents = encode(encoder, vectors)
    codes = nearest_codes(latents, codebooks)
    _check_use(codes, codebook_size, say)
    return RQVAE(codes, latents, codebooks, encoder)


def encode(encoder: Weights, vectors: Float[Tensor, "N D"]) -> Float[Tensor, "N Z"]:
    """Latents of vectors of the kind that the encoder was trained on."""
    with torch.no_grad():
        chunks = vectors.float().split(_ROWS)
        scaled = ((chunk - encoder["mean"]) / encoder["deviation"] for chunk in chunks)
        return torch.cat([_mlp(encoder, chunk) for chunk in scaled])


def _layers(widths: tuple[int, ...], draw: torch.Generator) -> Weights:
    """Uniform between -1 and 1 over the root of a layer's inputs, as `torch.nn.Linear` begins."""
    weights = {}
    for layer, (num_in, num_out) in enumerate(pairwise(widths)):
        for name, shape in (("weight", (num_out, num_in)), ("bias", (num_out,))):
            uniform = torch.rand(shape, generator=draw) * 2 - 1
            weights[f"{layer}.{name}"] = (uniform / math.sqrt(num_in)).requires_grad_()
    return weights


def _mlp(weights: Weights, inputs: Float[Tensor, "N A"]) -> Float[Tensor, "N B"]:
    last = sum(name.endswith(".weight") for name in weights) - 1
    for layer in range(last + 1):
        inputs = F.linear(inputs, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
        inputs = inputs if layer == last else inputs.relu()
    return inputs


def _quantize(
    latent: Float[Tensor, "N Z"], books: list[Tensor]
) -> tuple[Int[Tensor, "N L"], list[Tensor], Float[Tensor, ""], Float[Tensor, "N Z"]]:
    """Codes, the residual at every level, the losses of codebooks and commitment, and what the
    decoder reads, through which gradients go straight."""
    left, total = latent, torch.zeros_like(latent)
    codes, residuals, loss = [], [], torch.zeros(())
    for book in books:
        code = torch.cdist(left.detach(), book.detach()).argmin(1)
        chosen = book[code]
        loss = loss + (left.detach() - chosen).square().sum(1).mean()
        loss = loss + _COMMITMENT * (left - chosen.detach()).square().sum(1).mean()
        codes.append(code)
        residuals.append(left.detach())
        total = total + chosen.detach()
        left = left - chosen.detach()
    return torch.stack(codes, 1), residuals, loss, latent + (total - latent).detach()


def _reset_dead(
    books: list[Tensor], taken: Int[Tensor, "L K"], residuals: list[Tensor], draw: torch.Generator
) -> None:
    """Codes that no item took become the residuals of random items of the batch."""
    for book, count, residual in zip(books, taken, residuals, strict=True):
        dead = (count == 0).nonzero()[:, 0]
        chosen = torch.randint(len(residual), (len(dead),), generator=draw)
        book.data[dead] = residual[chosen]


def _check_use(codes: Int[Tensor, "I L"], size: int, say: Callable[[str], None]) -> None:
    """Raise `RecastError` for a level with a tenth of its codes in use or less, or a single one;
    warn of one with less than half."""
    for level, column in enumerate(codes.T):
        used = len(column.unique())
        what = f"level {level + 1} of the RQ-VAE uses {used} of {size} codes"
        if used <= max(1, size // 10):
            raise RecastError(
                f"{what}, its codebook is dead: lower codebook_size or num_levels, give more "
                "rq_vae_steps, or quantizer rq_kmeans"
            )
        if used < size / 2:
            say(f"warning: {what}: lower codebook_size, or give more rq_vae_steps")
