"""Generated scenes of real marks, photographs and type: `ShelvesSource`; `preview` draws a picture sheet."""

from sm_jax.data.synthetic.preview import preview
from sm_jax.data.synthetic.source import ShelvesSource

__all__ = ["ShelvesSource", "preview"]
