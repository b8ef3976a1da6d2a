"""Methods: for every update of a rollout batch, which tokens are visible, which are targets, how much each weighs.

A method is a subclass of `Method` with a literal `name`, and an entry in `METHODS`.
"""

from htgrpo_ext.methods.base import Method
from htgrpo_ext.methods.htgrpo import HTGRPO
from htgrpo_ext.methods.remasking import D1, MaskGRPO, MaskGRPOFixed, UniGRPO
from htgrpo_ext.methods.trajectory import TraceGRPO

METHODS: tuple[type[Method], ...] = (HTGRPO, MaskGRPO, MaskGRPOFixed, UniGRPO, D1, TraceGRPO)
