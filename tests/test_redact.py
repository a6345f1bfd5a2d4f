"""What is secret is not printed, not logged, not written; a config names it and the environment holds it."""

import json
import subprocess
import sys

import pytest

from jaxlean import redact
from jaxlean.config import load
from jaxlean.errors import ConfigError
from jaxlean.redact import expand, hidden, secret_in

TOKEN = "hf_" + "aB3" * 11
SECRETS = [
    ("https://me:pass-word@host/rows.jsonl", "pass-word", "https://***@host/rows.jsonl"),
    (f"https://{TOKEN}@host/x", TOKEN, "https://***@host/x"),
    ("postgresql+psycopg://jax:lean%40@db:5432/trials", "lean", "postgresql+psycopg://***@db:5432/trials"),
    ("s3://AKIAABCDEFGHIJKLMNOP:abc/def@bucket/x", "AKIA", None),
    ("https://b.s3.amazonaws.com/r.jsonl?X-Amz-Signature=0f0f&a=1", "0f0f", "https://b.s3.amazonaws.com/r.jsonl?X-Amz-Signature=***&a=1"),
    ("https://host/r.jsonl?sv=2&sig=abc%3D", "abc", "https://host/r.jsonl?sv=2&sig=***"),
    ("https://host/r.jsonl?access_token=t0k", "t0k", "https://host/r.jsonl?access_token=***"),
    (f"token {TOKEN}.", TOKEN, "token ***."),
    ("sk-proj-abcdefghij0123456789", "abcdefghij", "***"),
    ("ghp_abcdefghij0123456789abcdefghij012345", "abcdefghij", "***"),
    ("xoxb-123456789012-abc", "1234567", "***"),
]  # fmt: skip
HARMLESS = [
    "https://huggingface.co/datasets/org/name/resolve/main/rows.jsonl?download=true",
    "https://${DATA_USER}:${DATA_PASSWORD}@host/rows.jsonl",
    "https://${DATA_TOKEN}@host/rows.jsonl",
    "https://host/rows.jsonl?sig=${ROWS_SIGNATURE}",
    "org/name", "runs/quickstart", "{text}", "user@host", "0123456789abcdef0123456789abcdef01234567",
    "https://host/a@b/rows.jsonl", "<|im_start|>{{ message['content'] }}",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _nothing_filled_in(monkeypatch):
    """What a test has filled in is no secret to the next."""
    monkeypatch.setattr(redact, "_expanded", {})


@pytest.mark.parametrize(("text", "secret", "shown"), SECRETS)
def test_secrets_are_known(text, secret, shown):
    assert secret_in(text) is not None
    assert secret not in hidden(text)
    assert shown is None or hidden(text) == shown
    assert hidden(hidden(text)) == hidden(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_stays(text):
    assert secret_in(text) is None
    assert hidden(text) == text


def test_what_the_environment_calls_secret_is(monkeypatch):
    text = "an answer: 1234-word-5678"
    assert hidden(text) == text
    for name in ("WANDB_API_KEY", "MY_TOKEN", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY", "password", "CLIENT_SECRET"):
        with monkeypatch.context() as patched:
            patched.setenv(name, "1234-word-5678")
            assert hidden(text) == "an answer: ***"
            assert secret_in(text) == f"the value of {name}, which is secret by that name,"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "1234-word-5678")
    monkeypatch.setenv("SSH_KEYS", "1234-word-5678")
    monkeypatch.setenv("SHORT_TOKEN", "answer")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/an/answer")
    assert hidden(text) == text


def test_a_password_among_words_is_hidden_and_is_no_reason_to_refuse_a_prompt():
    assert (
        hidden("could not connect: host=db password=word1 user=me") == "could not connect: host=db password=*** user=me"
    )
    assert secret_in("password={password}") is None
    assert hidden("password={password}") == "password={password}"


def test_the_environment_fills_in_and_what_it_filled_in_is_hidden(monkeypatch):
    monkeypatch.setenv("WHO", "somebody")
    monkeypatch.setenv("WHAT", "plainword")
    found = expand("https://${WHO}:${WHAT}@host/${WHO}.jsonl")
    assert found == "https://somebody:plainword@host/somebody.jsonl"
    assert hidden("plainword of somebody") == "*** of ***"
    assert expand("$HOME {x} $${") == "$HOME {x} $${"
    with pytest.raises(KeyError, match="NOT_THERE"):
        expand("${NOT_THERE}")


@pytest.mark.parametrize(("key", "value"), [
    ("data.train", "https://me:pass-word@host/rows.jsonl"),
    ("data.train", "[{path: 'https://me:pass-word@host/rows.jsonl', weight: 2}]"),
    ("report.run_name", TOKEN),
    ("model.path", f"https://{TOKEN}@huggingface.co/x"),
    ("model.revision", "the-value-of-a-token"),
])  # fmt: skip
def test_a_config_that_holds_one_is_refused_and_the_message_does_not(key, value, monkeypatch, cli, tmp_path):
    monkeypatch.setenv("MY_TOKEN", "the-value-of-a-token")
    file = tmp_path / "c.yaml"
    file.write_text("output_dir: run\n")
    with pytest.raises(ConfigError) as refused:
        load(file, [f"{key}={value}"])
    exit_code, out, err = cli("finetune", file, f"{key}={value}")
    assert exit_code == 2
    for text in (str(refused.value), out, err):
        assert not any(secret in text for secret in ("pass-word", TOKEN, "the-value-of-a-token"))
    for words in ("does not belong into a config", "${", "environment"):
        assert words in str(refused.value)


def test_a_config_that_names_one_is_written_as_it_is(tmp_path, monkeypatch):
    from jaxlean.config import dump

    monkeypatch.setenv("DATA_PASSWORD", "pass-word")
    path = "https://me:${DATA_PASSWORD}@host/rows.jsonl".replace("me:", "${DATA_USER}:")
    text = dump(load(None, [f"data.train={path}"]))
    assert path in text
    assert "pass-word" not in text


def test_a_url_is_opened_with_what_the_environment_holds(monkeypatch):
    import datasets

    from jaxlean.config import SourceSection
    from jaxlean.data.source import open_rows
    from jaxlean.errors import DataError

    opened = []

    def refuse(builder, *, data_files, **options):
        opened.append(data_files)
        raise OSError(f"401 for {data_files}")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    source = SourceSection(path="https://${A_USER}:${A_WORD}@host/rows.jsonl")
    with pytest.raises(DataError, match="the environment has no A_USER"):
        open_rows(source)
    monkeypatch.setenv("A_USER", "mallory")
    monkeypatch.setenv("A_WORD", "unguessable")
    with pytest.raises(DataError, match="could not be loaded") as refused:
        open_rows(source)
    assert opened == ["https://mallory:unguessable@host/rows.jsonl"]
    assert "unguessable" not in hidden(str(refused.value))


PROGRAM = f"""
import logging, sys, threading, warnings
from jaxlean.redact import guard
guard()
log = logging.getLogger('a.library')
log.warning('GET %s', 'https://me:pass-word@host')

class Late:
    def __del__(self):
        raise ValueError('of {TOKEN}')

class Own(logging.Formatter):
    def format(self, record):
        told = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        return 'in its own way: ' + record.getMessage() + str(told)

def fail(kind):
    raise kind('401 with {TOKEN}')

Late()
for formatter in (None, Own()):
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    log.handlers = [handler]
    try:
        fail(KeyError)
    except KeyError:
        log.exception('a download %s', 'failed')
log.handlers = []
log.warning('from %s', 'here', stack_info='{TOKEN}')
log.error('nothing was raised', exc_info=True)
thread = threading.Thread(target=fail, args=(LookupError,), name='reader')
thread.start()
thread.join()
thread = threading.Thread(target=sys.exit)
thread.start()
thread.join()
warnings.warn('https://me:pass-word@host is old')
logging.basicConfig()
logging.captureWarnings(True)
warnings.warn('https://you:pass-word@host is older')
fail(OSError)
"""


def test_tracebacks_logs_and_warnings_hide_them(tmp_path):
    file = tmp_path / "program.py"  # lines of which tracebacks show
    file.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    for line in (
        "GET https://***@host", "ValueError: of ***", "a download failed\nTraceback (most recent call last)",
        "in its own way: a download failedTraceback (most recent call last)", "KeyError: '401 with ***'",
        "from here\nStack (most recent call last):", "stack_info='***'", "nothing was raised\nNoneType: None",
        "Exception in thread reader:\nTraceback (most recent call last)", "LookupError: 401 with ***",
        "raise kind('401 with ***')", "OSError: 401 with ***", "UserWarning: https://***@host is old",
        "UserWarning: https://***@host is older",
    ):  # fmt: skip
        assert line in done.stderr
    assert TOKEN not in done.stderr
    assert "pass-word" not in done.stderr


def test_the_traceback_of_a_command_hides_them():
    program = (
        "import sys\nfrom jaxlean import cli\nfrom jaxlean.run import environment\n"
        f"def broken(*_):\n    raise ValueError('401 with {TOKEN}')\n"
        "environment.print_environment = broken\nsys.argv = ['jaxlean', 'env']\ncli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: 401 with ***" in done.stderr
    assert TOKEN not in done.stderr


def test_a_bug_and_a_full_disk_hide_them_too(monkeypatch, cli, tmp_path):
    from jaxlean.run import environment

    def broken(*arguments):
        raise OSError(28, f"No space left on device: https://me:pass-word@host {TOKEN}")

    monkeypatch.setattr(environment, "print_environment", broken)
    exit_code, _, err = cli("env")
    assert exit_code == 2
    assert "No space left on device" in err
    assert "pass-word" not in err
    assert TOKEN not in err


@pytest.mark.slow
def test_nothing_that_a_run_leaves_holds_one(small_machine, tiny_run, tmp_path, monkeypatch, capfd, caplog):
    from jaxlean.run.export import export
    from jaxlean.run.finetune import finetune

    secrets = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": "0a1b2c3d4e" * 4, "AWS_SECRET_ACCESS_KEY": "abc/def+ghi" * 3}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    finetune(tiny_run("report.tensorboard=true"))
    export(tmp_path / "run", tmp_path / "out", "peft")
    said = json.dumps(capfd.readouterr()) + caplog.text
    every = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(every) > 10
    for value in secrets.values():
        assert value not in said
        assert not [file for file in every if value.encode() in file.read_bytes()]
