"""A comparison in words: who wins, by how much, and where RL made it worse, why, each reason with
its number; where nothing says why, none."""

from __future__ import annotations

from recast.evaluation.comparison import Versus
from recast.evaluation.metrics import PRIMARY
from recast.evaluation.seed_results import Comparison, MethodRow

_SURE = 0.05
_ALL_ZERO, _KL_TAIL, _KL = 0.9, 0.5, 0.05
"""Share of groups without a hit as in the alarm of `recast rl`; a tenth of the rows with half of
the KL is a tail, if there is a KL to speak of."""


def verdict(results: Comparison) -> list[str]:
    """One sentence a line."""
    start, control, *_ = results.against
    own = {name: row for name, row in results.methods.items() if name not in (start, control)}
    lines = []
    best = max(results.methods, key=lambda n: results.methods[n].compared.metrics[PRIMARY].mean)
    lines.append(_winner(results, best))
    order = list(results.methods)
    for name, row in results.methods.items():
        for other in row.compared.equals:
            if name != start and order.index(name) < order.index(other):
                lines.append(f"{name} and {other} ranked every row alike: they are equal here.")
        if start in row.compared.equals and name != start:
            lines.append(f"{name} ranks every row as the start does: it moved nothing.")
    for name, row in own.items():
        gap = row.compared.against[start][PRIMARY]
        if is_sure(gap) and gap.mean < 0:
            reasons = why_worse(results, row)
            lines.append(
                f"{name} made the start worse, {said(gap)}"
                + (f": {'; '.join(reasons)}." if reasons else "; nothing measured here says why.")
            )
    if results.users == 1:
        lines.append("There is one user: nothing can be concluded for others.")
    if results.seeds == 1:
        lines.append("There is one seed: nothing is said of other seeds.")
    if len(results.test_reads) > 1:
        lines.append(
            f"Test rows were ranked with {len(results.test_reads)} sets of choices in this folder: "
            "what was chosen after the first may have seen them."
        )
    return lines


def is_sure(gap: Versus) -> bool:
    return gap.p_holm is not None and gap.p_holm < _SURE


def said(gap: Versus) -> str:
    """A difference with what is known of it."""
    ends = f"95 % {gap.over_both[0]:+.4f} to {gap.over_both[1]:+.4f}, " if gap.over_both else ""
    p = "p none" if gap.p_holm is None else f"p {_p(gap.p_holm)}"
    return f"{gap.mean:+.4f} NDCG@10 ({ends}{p} after Holm)"


def _winner(results: Comparison, best: str) -> str:
    start, control, *_ = results.against
    gaps = results.methods[best].compared.against
    known = {name: gaps[name][PRIMARY] for name in (start, control) if name in gaps}
    if best != start and all(is_sure(gap) and gap.mean > 0 for gap in known.values()):
        words = [f"{said(gap)} over {name}" for name, gap in known.items()]
        if best == control:
            return f"More training without rollouts wins: {control}, {words[0]}."
        return f"{best} wins: {', '.join(words)}."
    smallest = [
        gap[PRIMARY].smallest
        for row in results.methods.values()
        for other, gap in row.compared.against.items()
        if other == start
    ]
    found = [size for size in smallest if size is not None]
    power = ""
    if found:
        power = f" Differences from the start below {max(found):.4f} may be there and not be found."
    beaten = [name for name, gap in known.items() if is_sure(gap) and gap.mean > 0]
    unsure = [f"{said(gap)} over {name}" for name, gap in known.items() if name not in beaten]
    if best == start:
        return f"Nobody wins: no method has a higher mean than the start.{power}"
    also = f" It does beat {' and '.join(beaten)}." if beaten else ""
    return f"Nobody wins: the best, {best}, is not surely better, {', '.join(unsure)}.{also}{power}"


def why_worse(results: Comparison, row: MethodRow) -> list[str]:
    """What was measured that goes with a loss."""
    start, control, *_ = results.against
    reasons = []
    more = results.methods[control].compared.against[start][PRIMARY]
    if is_sure(more) and more.mean > 0:
        reasons.append(
            f"the start had not converged, more of its own training adds {more.mean:+.4f}"
        )
    narrow = row.compared.against[start]
    wide, top = narrow.get("item/hr@50"), narrow.get("item/hr@1")
    if wide and top and wide.over_both and wide.over_both[1] < 0 < top.mean:
        reasons.append(
            f"HR@50 fell ({wide.mean:+.4f}) while HR@1 rose ({top.mean:+.4f}): it narrowed"
        )
    told = row.training
    kl, tail = told.get("valid/kl", 0.0), told.get("valid/kl_tail_frac", 0.0)
    if kl > _KL and tail > _KL_TAIL:
        reasons.append(
            f"a tail of the KL: a tenth of the validation rows hold {tail:.0%} of it, mean {kl:.2f}"
        )
    if (zero := told.get("group/all_zero_frac", 0.0)) > _ALL_ZERO and row.group_size:
        reasons.append(f"{zero:.0%} of its groups held no hit")
    if curve := row.curve.get("ndcg@10"):
        rose = curve[-1].mean - curve[0].mean
        if rose > 0:
            reasons.append(f"validation rose ({rose:+.4f}) while test fell: it overfits validation")
    return reasons


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "below .0001"
