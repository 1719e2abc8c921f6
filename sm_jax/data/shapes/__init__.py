"""Generated scenes of coloured shapes with phrases about them: `ShapeScenes`."""

from sm_jax.data.shapes.scenes import ShapeScenes

__all__ = ["ShapeScenes"]
