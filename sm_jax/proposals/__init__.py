"""Region proposals: class-agnostic boxes of a picture. NumPy and scikit-image only; see `propose`."""

from sm_jax.proposals.methods import METHODS, border_filter
from sm_jax.proposals.run import Proposals, propose, propose_many

__all__ = ["METHODS", "Proposals", "border_filter", "propose", "propose_many"]
