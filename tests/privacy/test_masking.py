"""No secret gets into a message: passwords of URLs, tokens, signed links."""

import logging
import warnings

import pytest

from hf_farms.errors import HfFarmsWarning, HubError
from hf_farms.hub.errors import explain
from hf_farms.privacy.masking import mask_error, mask_secrets, remember_secret

LONG = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("at http://ada:geheim@127.0.0.1:9/x.", "at http://127.0.0.1:9/x."),
        ("https://u:p@ss:w@hub.example/a/b?c=d", "https://hub.example/a/b?c=d"),
        ("https://geheim@hub.example", "https://hub.example"),
        ("user:geheim@hub.example:8080/x", "hub.example:8080/x"),
        ("GET /x?token=geheim&a=1", "GET /x?token=***&a=1"),
        ("?X-Amz-Signature=geheim&X-Amz-Date=1", "?X-Amz-Signature=***&X-Amz-Date=1"),
        ("https://h/x?access_token=geheim#y", "https://h/x?access_token=***#y"),
        (f"got '{LONG}' in", "got '***' in"),
        (f"https://h/{LONG}/x", "https://h/***/x"),
        ("Authorization: Bearer geheim-1", "Authorization: Bearer ***"),
        ("a hf_oauth_eyJhbGciOi.x-y_z b", "a *** b"),
        ("password=geheim", "password=***"),
        ("--token=geheim", "--token=***"),
    ],
)
def test_secrets_are_masked(text, masked):
    assert mask_secrets(text) == masked
    assert mask_secrets(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hf_farms.errors.HfFarmsWarning: x",
        "hf_farms_report.json, hf_farms.reports.lr_history, hf-farms prune demo",
        "num_tokens=12, tokenizer=x, eos_token='</s>', max_new_tokens=40",
        "https://huggingface.co/@ada/x and ada@example.org",
        "at 12:30 @ noon, a:b",
        "def key(x): return key=1",
    ],
)
def test_what_is_no_secret_stays(text):
    assert mask_secrets(text) == text


def test_secrets_of_this_process_are_masked_whatever_they_look_like(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "my-own-token")
    monkeypatch.setenv("HF_ENDPOINT", "http://ada:p%40ssword@127.0.0.1:1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("saved-token\n")
    assert mask_secrets("my-own-token p@ssword p%40ssword saved-token ada") == "*** *** *** *** ada"
    (tmp_path / "token").unlink()
    monkeypatch.delenv("HF_TOKEN")
    assert mask_secrets("my-own-token saved-token") == "my-own-token saved-token"
    monkeypatch.setattr("hf_farms.privacy.masking._remembered", set())
    remember_secret("given-to-a-function")
    assert mask_secrets("given-to-a-function") == "***"
    remember_secret("a")
    assert mask_secrets("a word") == "a word"


def test_errors_and_warnings_of_ours_hold_none():
    error = HubError("http://u:geheim@h could not", hint="open http://u:geheim@h/x?token=geheim")
    assert str(error) == "http://h could not"
    assert error.hint == "open http://h/x?token=***"
    with pytest.warns(HfFarmsWarning) as found:
        warnings.warn("see http://u:geheim@h", HfFarmsWarning, stacklevel=1)
    assert [str(warning.message) for warning in found] == ["see http://h"]


def test_the_errors_behind_an_error_hold_none():
    first = ValueError("for url http://u:geheim@h/x")
    second = RuntimeError("again: http://u:geheim@h/y", 3)
    second.__context__, first.__context__ = first, second  # a circle
    assert mask_error(second) is second
    assert (second.args, first.args) == (("again: http://h/y", 3), ("for url http://h/x",))
    third = OSError("no file at http://u:geheim@h/x")
    assert "geheim" not in str(explain(third, what="http://u:geheim@h")) + str(third)


def test_logs_of_libraries_hold_none_while_a_command_runs(caplog):
    from hf_farms_cli.console import guarded

    @guarded
    def command():
        logging.getLogger("huggingface_hub").warning("again: %s (%d)", "http://u:geheim@h", 2)
        logging.getLogger("other").warning("%d", "http://u:geheim@h does not fit")

    raises, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        command()
    finally:
        logging.raiseExceptions = raises
    assert caplog.records[0].getMessage() == "again: http://h (2)"
    logging.getLogger("huggingface_hub").warning("as before")
    assert caplog.records[-1].msg == "as before"
