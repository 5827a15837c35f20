"""Texts of people's own choosing: what a shell, YAML, SQL, a URI or a disk may take for something else."""

from hypothesis import strategies as st

LETTERS = "'\"`#?%&$\\:;,{}[]()<>|~!*@=+-_.^ \tab019" + "\u00e9e\u0301\u65e5\u0939\u093f\u2028\U0001f600"
TRAPS = [
    "2024-11-20", "2024-11-20 10:00:00", "12:30:45", "12", "007", "1e5", "1_000", "0x1f", ".5", ".nan",
    "null", "~", "Null", "yes", "no", "on", "off", "True", "", "=", "<<", "- a", "a: b", "a:", "? a", "[a]",
    "{a: 1}", "#b", "/tmp/a #b", "a%20b", "a?b=c", "%s", "${HOME}", "$(ls)", "`ls`", "'x'", '"x"', "''", '""',
    "it's", "'a' #b'", "|", ">", "&a", "*a", "!x", "%YAML", "@a", "a::b", "s3://a", "--", " x ", "\u0085",
]  # fmt: skip


def texts() -> st.SearchStrategy[str]:
    """Up to 12 letters that mean something somewhere, or a text that looks like something else."""
    return st.sampled_from(TRAPS) | st.text(LETTERS, max_size=12)


def file_names() -> st.SearchStrategy[str]:
    """Those of them that can be the name of a file that is not hidden."""
    return texts().filter(lambda text: text and text[0] != "." and "/" not in text)
