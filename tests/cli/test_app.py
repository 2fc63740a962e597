"""Help, version, exit codes, and what becomes of exceptions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from unblemish.cli import COMMANDS
from unblemish.errors import SourceError

HEAVY = ("numpy", "cv2", "onnxruntime", "onnx", "torch", "matplotlib", "jinja2", "skimage")


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_explains_every_command(run: Callable[..., Any], command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.code == 0
    assert result.err == ""
    assert " ".join(("Usage: unblemish", *command)) in result.out


def test_help_lists_all_commands(run: Callable[..., Any]) -> None:
    text = run("--help").out
    assert all(name in text for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    done = python(
        "import sys, unblemish.cli as cli\n"
        "assert cli.main(['--help']) == 0 and cli.main(['inspect', '--help']) == 0\n"
        f"sys.exit(','.join(name for name in {HEAVY} if name in sys.modules) or None)"
    )
    assert done.returncode == 0, done.stderr


def test_version_is_that_of_the_package(run: Callable[..., Any]) -> None:
    import unblemish

    result = run("--version")
    assert (result.code, result.out) == (0, f"unblemish {unblemish.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("doctor", "--nonsense"),
        ("inspect", "only-a-bundle"),
        ("inspect", "bundle", "image.png", "--out", "out", "--refine", "hard"),
        ("inspect", "bundle", "image.png", "--out", "out", "--deadline-ms", "soon"),
    ],
)
def test_wrong_usage_exits_with_2(run: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "Error:" in result.err
    assert "Traceback" not in result.err


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `doctor` raise."""

    def arrange(error: BaseException) -> None:
        def examine() -> None:
            raise error

        monkeypatch.setattr("unblemish.doctor.examine", examine)

    return arrange


def test_errors_of_ours_are_one_message_on_stderr(
    run: Callable[..., Any], failing: Callable[[BaseException], None]
) -> None:
    failing(SourceError("the lens cap is on"))
    assert run("doctor") == (2, "", "error: the lens cap is on\n")


def test_unexpected_errors_say_how_to_get_the_traceback(
    run: Callable[..., Any], failing: Callable[[BaseException], None]
) -> None:
    failing(ZeroDivisionError("by nothing"))
    result = run("doctor")
    assert result.code == 2
    assert "unexpected ZeroDivisionError: by nothing" in result.err
    assert "UNBLEMISH_DEBUG=1" in result.err
    assert "Traceback" not in result.err


def test_debug_shows_the_traceback(
    run: Callable[..., Any],
    failing: Callable[[BaseException], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNBLEMISH_DEBUG", "1")
    failing(ZeroDivisionError("by nothing"))
    result = run("doctor")
    assert result.code == 2
    assert "Traceback" in result.err


def test_an_interrupt_exits_with_130(
    run: Callable[..., Any], failing: Callable[[BaseException], None]
) -> None:
    failing(KeyboardInterrupt())
    assert run("doctor") == (130, "", "\ninterrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_closed_pipe_is_quiet() -> None:
    code = (
        "import sys, unblemish.cli as cli, unblemish.doctor as doctor\n"
        "def endless():\n"
        "    while True: print('x' * 4096, flush=True)\n"
        "doctor.examine = endless\n"
        "sys.exit(cli.main(['doctor']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""
