import pytest

from configs.common import parse_arg
from sm_jax.errors import ConfigError


def test_types_follow_the_defaults():
    text = "runlocal,steps=1_000,lr=1,name=a=b,crop=(600, 400),data=/some/path"
    args = parse_arg(
        text + ",scales=2,extra=[1,2],flag=false,splits=val",
        steps=5, lr=0.1, name="x", crop=(1, 1), data="", scales=(0.5,), extra=None, flag=True, other=7,
        splits=("a",),
    )  # fmt: skip
    assert args.to_dict() == {
        "runlocal": True, "steps": 1000, "lr": 1.0, "name": "a=b", "crop": (600, 400), "data": "/some/path",
        "scales": (2.0,), "extra": [1, 2], "flag": False, "other": 7, "splits": ("val",),
    }  # fmt: skip
    assert isinstance(args.lr, float)


@pytest.mark.parametrize("arg", [None, "", " , "])
def test_nothing_gives_the_defaults(arg):
    assert parse_arg(arg, steps=5).to_dict() == {"runlocal": False, "steps": 5}


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("step=3", "'step' is not known; did you mean 'steps'"),
        ("zzz", "there are name, runlocal, steps"),
        ("steps=3,steps=4", "given twice"),
        ("steps=many", "'many' is not a value like 5"),
        ("steps=1.5", "not a value like 5"),
        ("steps", "needs a value"),
        ("runlocal=maybe", "not true or false"),
    ],
)
def test_bad_arguments_are_one_clear_line(arg, words):
    with pytest.raises(ConfigError, match="(?s)" + words.replace("(", r"\(")) as caught:
        parse_arg(arg, steps=5, name="x")
    assert "\n" not in str(caught.value)
