# SPDX-License-Identifier: Apache-2.0
"""The second start happens only where it helps, and leaves the user's own settings alone."""

from __future__ import annotations

import pytest

from kcmoe.model.cpu import memory


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """kernel("always [madvise] never") -> a kernel that says so, and a clean environment."""
    path = tmp_path / "enabled"
    monkeypatch.setattr(memory, "_KERNEL", path)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("KCMOE_HUGE_PAGES", raising=False)
    monkeypatch.delenv("KCMOE_KEEP_MEMORY", raising=False)
    return path.write_text


def test_asks_where_the_kernel_offers(kernel, monkeypatch):
    kernel("always [madvise] never\n")
    assert memory.environment()["GLIBC_TUNABLES"] == memory.HUGE_PAGES
    started = []
    monkeypatch.setattr(memory.os, "execve", lambda *args: started.append(args))
    memory.restart_with_huge_pages()
    program, argv, env = started[0]
    assert argv[0] == program
    assert env["GLIBC_TUNABLES"] == memory.HUGE_PAGES


@pytest.mark.parametrize("program", ["", "/no/python"])
def test_goes_on_where_python_cannot_be_started_again(kernel, monkeypatch, program):
    kernel("always [madvise] never\n")
    monkeypatch.setattr(memory.sys, "executable", program)
    memory.restart_with_huge_pages()


@pytest.mark.parametrize("offer", ["[always] madvise never", "always madvise [never]"])
def test_no_second_start_where_it_would_change_nothing(kernel, monkeypatch, offer):
    kernel(offer)
    monkeypatch.setattr(memory.os, "execve", lambda *_: pytest.fail("started again"))
    memory.restart_with_huge_pages()


@pytest.mark.parametrize(
    ("name", "value"), [("GLIBC_TUNABLES", "glibc.malloc.check=1"), ("KCMOE_HUGE_PAGES", "0")]
)
def test_the_users_settings_win(kernel, monkeypatch, name, value):
    kernel("always [madvise] never\n")
    monkeypatch.setenv(name, value)
    assert memory.environment() is None


def test_training_asks_for_more(kernel, monkeypatch):
    """Whatever the kernel offers, unless memory is not to be kept."""
    kernel("always [madvise] never\n")
    both = f"{memory.HUGE_PAGES}:{memory.NO_SCRAPS}"
    assert memory.environment(training=True)["GLIBC_TUNABLES"] == both
    kernel("[always] madvise never\n")
    assert memory.environment(training=True)["GLIBC_TUNABLES"] == memory.NO_SCRAPS
    monkeypatch.setenv("KCMOE_KEEP_MEMORY", "0")
    assert memory.environment(training=True) is None


@pytest.mark.parametrize("already", [True, False])
def test_bench_runs_t5x_as_its_own_launcher_starts_it_too(kernel, monkeypatch, already):
    """`kcmoe bench` itself runs with huge pages by then; the other engine must not inherit them unasked."""
    kernel("always [madvise] never\n")
    if already:
        monkeypatch.setenv("GLIBC_TUNABLES", memory.HUGE_PAGES)
    plain, huge = memory.environments()
    assert "GLIBC_TUNABLES" not in plain
    assert huge == {**plain, "GLIBC_TUNABLES": memory.HUGE_PAGES}


def test_bench_leaves_the_users_settings_alone(kernel, monkeypatch):
    kernel("always [madvise] never\n")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    plain, huge = memory.environments()
    assert plain == huge
    assert plain["GLIBC_TUNABLES"] == "glibc.malloc.check=1"
