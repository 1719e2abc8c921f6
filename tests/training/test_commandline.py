import pytest
from ml_collections import ConfigDict

from sm_jax.errors import ConfigError
from sm_jax.training import commandline

FILE = """
from ml_collections import ConfigDict
from configs.common import parse_arg

def get_config(arg=None):
    args = parse_arg(arg, size=3)
    section = {"lr": 0.1, "steps": (1, 2), "on": False, "name": "sgd", "none": None}
    return ConfigDict({"size": args.size, "optim": section})
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(FILE)
    return path


def _parse(file, *words):
    return commandline.parse(
        words, config=str(file), options={"workdir": "", "json": False, "n": 1}, help="HELP"
    )


def test_config_arguments_overrides_and_options(file):
    config, options = _parse(
        "missing.py", f"--config={file}:size=7", "--workdir", "out", "--json", "--n=4", "--config.optim.lr=1",
        "--config.optim.steps=(5,)", "--config.optim.on", "--config.optim.name", "adam",
        "--config.optim.none=2",
    )  # fmt: skip
    section = {"lr": 1.0, "steps": (5,), "on": True, "name": "adam", "none": 2}
    assert config.to_dict() == {"size": 7, "optim": section}
    assert isinstance(config, ConfigDict)
    assert options == {"workdir": "out", "json": True, "n": 4}


def test_a_folder_may_have_py_in_its_name(file, tmp_path):
    folder = tmp_path / "my.python.projects"
    folder.mkdir()
    (folder / "toy.py").write_text(file.read_text())
    assert commandline.load_config(f"{folder}/toy.py:size=8").size == 8
    assert commandline.load_config(f"{folder}/toy.py").size == 3


def test_defaults(file):
    config, options = _parse(file)
    assert config.size == 3 and options == {"workdir": "", "json": False, "n": 1}


def test_help_is_printed(file, capsys):
    with pytest.raises(SystemExit) as caught:
        _parse(file, "--help")
    assert caught.value.code == 0 and capsys.readouterr().out == "HELP\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--config.optim.lrr=1", r"config.optim.lrr is not known; did you mean 'lr'\?"),
        ("--config.optin.lr=1", r"config.optin is not known; did you mean 'optim'\?"),
        ("--config.size.lr=1", "config.size is a value, not a section"),
        ("--config.optim=1", "config.optim is a section; there are config.optim.lr"),
        ("--config.optim.lr=fast", "'fast' is not a value like 0.1"),
        ("--config.optim.lr", "needs a value"),
        ("--config.size=1.5", "'1.5' is not a value like 3"),
        ("--wrkdir=x", r"--wrkdir is not known; did you mean 'workdir'\?"),
        ("--workdir", "needs a value"),
        ("train", "'train' is not an option"),
        ("--config=nowhere/x.py", "no config file 'nowhere/x.py'"),
        ("--config=x.yaml", "no config file 'x.yaml'"),
    ],
)
def test_bad_words_are_one_clear_line(file, word, message):
    with pytest.raises(ConfigError, match=message) as caught:
        _parse(file, word)
    assert "\n" not in str(caught.value)


def test_a_config_argument_that_is_not_known(file):
    with pytest.raises(ConfigError, match="'sise' is not known; did you mean 'size'"):
        _parse(f"{file}:sise=3")


def _config():
    return ConfigDict({"joint": False, "eval": {"pictures": 8, "splits": ("val",)}})


def test_overrides_apply_to_any_config_in_both_spellings():
    words = [
        "--config.joint",
        "false",
        "--config.eval.pictures",
        "3",
        "--config.eval.splits=test",
        "--step=4",
    ]
    line = commandline.read(words, options={"step": ""}, help="")
    assert (line.config, line.options) == ("", {"step": "4"})
    config = line.apply(_config())
    assert (config.joint, config.eval.pictures, config.eval.splits) == (False, 3, ("test",))
    assert commandline.read(["--config.joint"], options={}, help="").apply(_config()).joint


def test_keys_are_checked_against_the_config_they_are_applied_to():
    line = commandline.read(["--config.pictures=3"], options={}, help="")
    with pytest.raises(ConfigError, match="config.pictures is not known"):
        line.apply(_config())
