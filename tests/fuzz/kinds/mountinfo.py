"""The table of mounts: any user may put one there (FUSE), under a name of their choice."""

from __future__ import annotations

import ast

import attrs
from hypothesis import strategies as st

from cryptbackd.worker import mountinfo
from tests.fuzz import mutate
from tests.fuzz.fuzzer import Fuzzer

SAMPLES = (
    b"22 28 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw\n",
    b"28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n",
    b"95 28 0:47 /@home /home rw shared:51 master:2 - btrfs /dev/mapper/x rw,subvol=/@home\n",
    b"512 28 0:61 / /home/me/a\\040b rw,nosuid - fuse.sshfs me@host: rw,user_id=1000\n",
    b"513 28 0:4 net:[4026531840] /run/netns/a rw - nsfs nsfs rw\n",
)
NAMES = st.one_of(
    st.binary(min_size=1, max_size=12).filter(lambda name: b"\0" not in name),
    st.sampled_from(mutate.NASTY_BYTES).filter(lambda name: name and b"\0" not in name),
    st.sampled_from((b"-", b"a - b", b"\\040", b"\\", b"#", b"\r", b"\x0b", b"\x1c", b"\xc2\x85")),
)


def _told(name: bytes, also: bytes = b"") -> bytes:
    """As the kernel writes it (fs/proc_namespace.c, ``seq_path_root`` and ``mangle``)."""
    return b"".join(b"\\%03o" % c if c in b" \t\n\\" + also else bytes([c]) for c in name)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A literal: mounts, and what the kernel would say of them."""
    mounts = draw(
        st.lists(
            st.tuples(
                st.lists(NAMES, max_size=3).map(lambda names: b"/" + b"/".join(names)),
                st.sampled_from((b"ext4", b"fuse", b"fuse.sshfs", b"fuse.a#b", b"tmpfs")),
                NAMES,
                st.sampled_from((b"rw", b"rw,user_id=1000,group_id=1000", b"rw,user_id=0")),
                st.sampled_from((b"", b"shared:1 ", b"shared:1 master:2 ", b"unbindable ")),
            ),
            max_size=4,
        )
    )
    return b"table " + repr(mounts).encode()


INPUTS = st.one_of(
    tables(),
    st.lists(mutate.changed(SAMPLES, 2), max_size=4).map(lambda raw: b"raw " + b"".join(raw)),
)


def check(raw: bytes) -> str:
    """Each mount is told as it is, whatever stands beside it; and nothing makes it fail."""
    kind, _space, told = raw.partition(b" ")
    if kind == b"raw":
        for mount in mountinfo.parse(told):
            assert all(isinstance(text, str) for text in attrs.astuple(mount)[:5])
        return "changed"
    mounts = ast.literal_eval(told.decode())
    lines = [
        b"%d 28 0:%d / %b rw,relatime %b- %b %b %b\n"
        % (
            number,
            number + 40,
            _told(path),
            more,
            _told(fstype, b"#"),
            _told(source, b"#"),
            options,
        )
        for number, (path, fstype, source, options, more) in enumerate(mounts)
    ]
    found = mountinfo.parse(b"".join(lines))
    assert [mount.path.encode("utf-8", "surrogateescape") for mount in found] == [
        path for path, *_rest in mounts
    ]
    for mount, (_path, fstype, source, options, _more) in zip(found, mounts, strict=True):
        assert mount.source.encode("utf-8", "surrogateescape") == source
        assert mount.fstype.encode() == fstype
        by_user = fstype.startswith(b"fuse") and b"user_id=0" not in options
        assert mount.served_by_user == by_user
    return "table"


FUZZER = Fuzzer(
    "mountinfo",
    "the table of mounts (`/proc/self/mountinfo`): `worker.mountinfo`",
    INPUTS,
    check,
)
