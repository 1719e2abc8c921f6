import pytest

from sm_jax import errors


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("main", "status", "shown"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (lambda: _raise(errors.ConfigError("no such key")), 2, "error: no such key\n"),
        (lambda: _raise(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_how_a_command_ends(main, status, shown, capsys):
    assert errors.run_main(main) == status
    assert capsys.readouterr() == ("", shown)


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        errors.run_main(lambda: 1 // 0)
