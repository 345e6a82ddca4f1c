"""The table of methods as text: `recast methods`."""

from __future__ import annotations

from recast.methods.parts import name_of, traits_of
from recast.methods.table import METHODS


def describe_methods() -> str:
    """Every method with its paper and its parts, one paragraph each: `recast methods`."""
    return "\n".join(
        f"{name}  {f'(arXiv {m.paper})' if m.paper else '(ours)'}\n"
        f"  {m.summary}\n"
        f"  samplers {', '.join(m.samplers) or 'none'} | reward {name_of(m.reward)} | "
        f"signal {name_of(m.signal)} | loss {name_of(m.loss)}\n"
        f"  lr {m.lr:g} | kl_coef {m.kl_coef:g} | nll_coef {m.nll_coef:g} | "
        f"log-probabilities {m.space} | group_size >= {m.min_group_size}"
        + (f" | {m.loss_agg}" if m.loss_agg != "token-mean" else "")
        + (" | fills the batch with mixed groups" if m.fill_batch else "")
        + (" | reads the whole batch" if traits_of(m.signal).reads_batch else "")
        for name, m in METHODS.items()
    )
