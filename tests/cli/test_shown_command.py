"""The command that a report records."""

import pytest
from hf_farms_cli.shown_command import shown_command


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["prune", "demo", "--push"], "hf-farms prune demo --push"),
        (["prune", "--token", "hf_secret", "demo"], "hf-farms prune demo"),
        (["prune", "demo", "--token=hf_secret", "-o", "my model"], "hf-farms prune demo -o 'my model'"),
        (["prune", "demo", "--token"], "hf-farms prune demo"),
        (["prune", "--token", "--token", "demo"], "hf-farms prune demo"),
        (["prune", "demo", "-q", "--overwrite", "--debug", "--push", "-y"], "hf-farms prune demo --push"),
        (["prune", "demo", "-qyo", "out"], "hf-farms prune demo -o out"),
        (["prune", "demo", "-qy", "-yoout", "a-queue"], "hf-farms prune demo -oout a-queue"),
        (["prune", "--format", "json", "demo", "--format=agent", "--json"], "hf-farms prune demo"),
    ],
)
def test_a_command_is_shown_without_its_token(arguments, shown):
    assert shown_command(["/usr/bin/hf-farms", *arguments]) == shown
