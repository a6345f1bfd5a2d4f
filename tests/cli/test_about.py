"""Verbs that say what jaxlean knows."""


def test_env(python):
    done = python("-m", "jaxlean", "env")
    assert done.returncode == 0, done.stderr
    for word in ("jax ", "transformers", "devices", "cpu", "memory"):
        assert word in done.stdout
