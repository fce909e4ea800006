"""Key files of both forms: what they may hold, how they are told apart, and the line that is said of a wrong one."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from orcinus.config.api_keys import MAX_NAMED_KEYS, ApiKey, key_name, read_keys
from orcinus.config.limits import ClientLimits, Limit
from orcinus.config.settings import SettingsError, load_settings
from orcinus.config.text_files import TextFileError

SECRET = "sk-5ecret"
HASH = f"sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}"
WHOLE = f"""\
# staff
keys:
  - name: batch
    key: {SECRET}
    models: [demo, other]
    expires: 2027-01-31
    max_requests: 8
    max_requests_per_minute: 600
    max_tokens_per_minute: 100000
    max_tokens: 256
  - name: boss@x.org
    key:
      - {HASH[:-1]}0
      - new
    admin: true
"""


def write(tmp_path: Path, text: str | bytes, name: str = "keys") -> Path:
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@pytest.mark.parametrize("beginning", ["", "\ufeff", "---\n", "\r\n# more\r\n"])
def test_a_yaml_file_gives_names_limits_models_and_an_expiry(tmp_path: Path, beginning: str) -> None:
    batch, boss, other = read_keys(write(tmp_path, beginning + WHOLE))
    assert batch == ApiKey(
        digest(SECRET),
        "batch",
        frozenset({"demo", "other"}),
        datetime(2027, 1, 31, tzinfo=UTC).timestamp(),
        limits=ClientLimits(
            Limit(8, "max_requests of key batch"),
            Limit(600, "max_requests_per_minute of key batch"),
            Limit(100_000, "max_tokens_per_minute of key batch"),
            Limit(256, "max_tokens of key batch"),
        ),
    )
    assert boss == ApiKey(bytes.fromhex(HASH[7:-1] + "0"), "boss@x.org", is_admin=True)
    assert other == ApiKey(digest("new"), "boss@x.org", is_admin=True)
    assert boss.client == other.client != batch.client
    assert [key_name(key.client) for key in (batch, boss)] == ["batch", "boss@x.org"]


def test_a_plain_file_has_keys_without_names_and_their_hashes(tmp_path: Path) -> None:
    file = write(tmp_path, f"one # key\n{HASH}\n{HASH.upper().replace('SHA256', 'sha256')}\nkeys of mine\n")
    first, second, third, fourth = read_keys(file)
    assert (first, fourth) == (ApiKey(digest("one # key")), ApiKey(digest("keys of mine")))
    assert second == third == ApiKey(digest(SECRET))
    assert key_name(first.client) is None
    assert load_settings(api_key=(HASH,)).read_api_keys() == (second,)


@pytest.mark.parametrize(
    ("text", "name"), [("", "keys.yaml"), ("keys:\n", "keys"), ("keys: []\n", "k.yml"), ("", "keys")]
)
def test_a_file_of_either_form_may_hold_no_key(tmp_path: Path, text: str, name: str) -> None:
    assert read_keys(write(tmp_path, text, name)) == ()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2027-01-31T12:00:00Z", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31 12:00:00", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("'2027-01-31T12:00'", datetime(2027, 1, 31, 12, tzinfo=UTC)),
        ("2027-01-31T12:00:00+02:00", datetime(2027, 1, 31, 12, tzinfo=timezone(timedelta(hours=2)))),
    ],
)
def test_an_expiry_without_an_offset_is_of_utc(tmp_path: Path, written: str, expected: datetime) -> None:
    [key] = read_keys(write(tmp_path, f"keys:\n- name: a\n  key: b\n  expires: {written}\n"))
    assert key.expires_at == expected.timestamp()


ENTRY = f"keys:\n- name: a\n  key: {SECRET}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (WHOLE.encode("utf-16"), "it is not UTF-8 text but UTF-16"),
        ("keys:\n\t- name: a\n", "it is not YAML in line 2, column 1: indent with spaces, not with tabs"),
        (f"keys:\n- name: a\n  key: '{SECRET}\n", "it is not YAML in line 4, column 1"),
        (f"keys:\n- name: a\n  key: *{SECRET}\n", "it is not YAML in line 3, column 8"),
        ("keys:\n- name: a\nmore: 1\n", "it must hold the list 'keys:' and nothing beside it"),
        ("keys: one\n", "'keys:' must hold a list, whose entries begin with '- name: '"),
        (f"keys:\n- {SECRET}\n", "the entry in line 2 must have a name and a key, such as '- name: batch'"),
        ("keys:\n- name: a\n", "the entry in line 2 has no key"),
        (f"keys:\n- key: {SECRET}\n", "the entry in line 2 has no name"),
        (ENTRY + "  name: b\n", "the entry in line 2 has name twice"),
        (ENTRY + "  max_token: 5\n", "the entry in line 2 has an unknown field 'max_token'; did you mean max_tokens?"),
        (ENTRY + "  max_tokens: 0\n", "max_tokens must be a whole number from 1 to 1000000000000, got '0'"),
        (ENTRY + "  max_tokens: yes\n", "max_tokens must be a whole number from 1 to 1000000000000, got 'True'"),
        (ENTRY + "  models: demo\n", "models must be a list of names that are served, got 'demo'"),
        (ENTRY + "  models: []\n", "models must be a list of names that are served, got"),
        (ENTRY + "  admin: 1\n", "admin must be true or false, got '1'"),
        (ENTRY + "  expires: soon\n", "expires must be a date or a time such as 2027-01-31 or .*, got 'soon'"),
        (ENTRY + "  expires: 2027-02-31\n", "expires must be a date or a time such as"),
        ("keys:\n- name: a b\n  key: c\n", "name must be 1 to 64 letters, digits and . _ - @ .*, got 'a b'"),
        ("keys:\n- name: 'a\n\n    b'\n  key: c\n", "name must be 1 to 64 letters"),
        ("keys:\n- name: 123\n  key: c\n", "name must be .*in quotes where it is a number"),
        ("keys:\n- name: a\n  key: 5123456\n", "key must be the key .in quotes where it is a number"),
        ("keys:\n- name: a\n  key: ''\n", "key must be the key"),
        ("keys:\n- name: a\n  key: []\n", "key must be the key"),
        ('keys:\n- name: a\n  key: "b\\tc"\n', "the key of a, in the entry in line 2, has a control character"),
        ('keys:\n- name: a\n  key: "\\ud800"\n', "half of a character|it is not YAML"),
        ("keys:\n- name: a\n  key: sha256:12\n", "begins with sha256: and must have 64 hexadecimal digits after it"),
        ("sha256:12\n", "the key in line 1 begins with sha256: and must have 64 hexadecimal digits after it"),
        (ENTRY + f"- name: b\n  key: {HASH}\n", "a and b have one: each key must be of one name"),
        (ENTRY + "- name: a\n  key: other\n", "two entries have the name a"),
        (f"# mine\n- name: a\n  key: {SECRET}\n", "line 2 looks like YAML: let the file begin with the line 'keys:'"),
        (f"one\nkey: {SECRET}\n", "line 2 looks like YAML: let the file begin with the line 'keys:'"),
        ("keys: " + "[" * 5000, "it is nested too deeply|it is not YAML"),
    ],
)
def test_one_line_is_said_of_a_wrong_file_and_no_key_is_in_it(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(TextFileError, match=message) as refusal:
        read_keys(write(tmp_path, text))
    assert "\n" not in str(refusal.value)
    assert "5ecret" not in str(refusal.value)
    assert "5123456" not in str(refusal.value)
    with pytest.raises(SettingsError, match="--api-key-file: cannot read "):
        load_settings(api_key_file=str(tmp_path / "keys"))


def test_there_may_be_so_many_names_and_no_more(tmp_path: Path) -> None:
    entries = [f"- {{name: n{number}, key: k{number}}}\n" for number in range(MAX_NAMED_KEYS + 1)]
    assert len(read_keys(write(tmp_path, "keys:\n" + "".join(entries[:-1])))) == MAX_NAMED_KEYS
    with pytest.raises(TextFileError, match="it has 1001 named keys, and may have 1000"):
        read_keys(write(tmp_path, "keys:\n" + "".join(entries)))


def test_a_named_key_is_not_given_without_its_name_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="keys: the key of a is given as api_key, too") as refusal:
        load_settings(api_key=(SECRET,), api_key_file=str(write(tmp_path, ENTRY)))
    assert SECRET not in str(refusal.value)


def test_the_documents_example_is_a_key_file(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/keys.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    keys = read_keys(write(tmp_path, example))
    assert [key.name for key in keys] == ["chat", "nightly-batch", "operator", "operator"]
    assert keys[1].limits.max_tokens == Limit(1024, "max_tokens of key nightly-batch")
    assert [key.is_admin for key in keys] == [False, False, True, True]
