import jax
import numpy as np

from sm_jax.training.sharding import make_mesh
from sm_jax.training.stream import Stream
from tests.training import toy


def _stream(**options):
    config = toy.make_config()
    return Stream(toy.make_train_iterator(config), make_mesh(config.mesh), **options)


def test_looking_at_the_shapes_takes_nothing_away():
    plain, looked = _stream(), _stream()
    before = looked.state()
    shapes = looked.shapes()
    assert looked.state() == before and shapes["image"].shape == (8, 6, 6, 3)
    for _ in range(2):
        (one,), (other,) = plain.next(), looked.next()
        np.testing.assert_array_equal(one["image"], other["image"])
    assert plain.state() == looked.state()


def test_a_state_brings_back_the_next_batches():
    stream = _stream(accumulate=2)
    stream.next()
    state = stream.state()
    expected = jax.device_get(stream.next())
    stream.next()
    stream.restore(state)
    np.testing.assert_equal(jax.device_get(stream.next()), expected)


def test_bytes_are_a_state_too_and_close_is_passed_on():
    class Iterator:
        closed, position = False, 0

        def get_state(self):
            return b"%d" % self.position

        def set_state(self, state):
            self.position = int(state)

        def close(self):
            self.closed = True

    iterator = Iterator()
    with Stream(iterator, make_mesh(toy.make_config().mesh)) as stream:
        iterator.position = 7
        state = stream.state()
        iterator.position = 0
        stream.restore(state)
        assert iterator.position == 7
    assert iterator.closed
