"""TRL's GRPOTrainer with the packed forward, trie-constrained groups and Recast's signals.

    from recast.integrations.trl import GRPOTrainer    # instead of: from trl import GRPOTrainer

Enters: what TRL's trainer takes, and a catalogue, a sampler and a signal if you like. Leaves: TRL's
trainer. This folder alone imports TRL.
"""

from recast.integrations.trl.host import WRITTEN_FOR
from recast.integrations.trl.trainer import GRPOTrainer

__all__ = ["WRITTEN_FOR", "GRPOTrainer"]
