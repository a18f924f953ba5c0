"""The page of a recovery kit: what is known of a drive, and how its files come back.  Pure.

One HTML document that needs nothing else: no scripts, no fonts, no pictures from elsewhere.
It is to be printed, and read in a text browser on a broken computer.  Whatever came from a
drive, an entry or a program is escaped.
"""

from __future__ import annotations

import re
import shlex
from html import escape

import attrs

from ..text import size

_STYLE = """
body { font: 11pt/1.45 sans-serif; color: #000; background: #fff; max-width: 46em }
body { margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em; margin: 0 0 .2em }
h2 { font-size: 1.15em; margin: 1.6em 0 .4em; border-bottom: 1px solid #000 }
th { text-align: left; vertical-align: top; padding: .15em 1.2em .15em 0; white-space: nowrap }
td { overflow-wrap: anywhere; padding: .15em 0 }
pre, code { font-family: monospace; font-size: .95em }
pre { border: 1px solid #888; padding: .5em .7em; white-space: pre-wrap; overflow-wrap: anywhere }
.warning { border: 2px solid #000; padding: .5em .8em; font-weight: bold }
.key { font-size: 1.25em; font-weight: bold }
svg { display: block; width: 4.4cm; height: 4.4cm; margin: .6em 0 }
@page { margin: 18mm }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt }
  h2 { break-after: avoid }
  pre, table, svg, .warning { break-inside: avoid }
}
"""
_PICTURE = re.compile(r"<svg\b.*</svg>", re.DOTALL)


@attrs.frozen
class Facts:
    """What the page says.

    ``container`` "": the partition itself is encrypted.  ``size`` 0: not known.  ``header`` is
    the name of the file beside the page, ``recovery`` a recovery key or "", and ``picture``
    that key as SVG, or "".
    """

    name: str
    uuid: str
    container: str
    size: int
    volume: str
    """The UUID of the LUKS volume."""
    fingerprint: str
    detached: bool
    include: tuple[str, ...]
    include_from: tuple[str, ...]
    """Files that name more of what is backed up."""
    header: str
    header_sha256: str
    made: str
    host: str
    recovery: str = ""
    picture: str = ""


def page(facts: Facts) -> str:
    """The whole document."""
    title = f"Recovery kit of {escape(facts.name)}"
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{title}</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        f"<h1>{title}</h1>",
        f"<p>Made on {escape(facts.made)} on the computer {escape(facts.host)} by cryptbackd.</p>",
        *_warning(facts),
        "<h2>The drive</h2>",
        *_table(facts),
        *_key(facts),
        *_by_hand(facts),
        *_with_cryptbackd(facts),
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def picture(svg: str) -> str:
    """The picture in what qrencode says, as it may stand in the page; "" when there is none."""
    found = _PICTURE.search(svg)
    if found is None or "<script" in svg:
        return ""
    return re.sub(r'\sxmlns="[^"]*"', "", found[0])


def _warning(facts: Facts) -> list[str]:
    words = "Keep this page and the file beside it apart from the drive, and apart from this"
    words += " computer."
    if facts.recovery:
        words = f"Whoever has this paper and the drive has the files. {words}"
    else:
        words = f"{words} A passphrase of the drive is not on it: without one, nothing opens it."
    if facts.detached:
        words += (
            f" There is no header on the drive: without the file {facts.header}, or the copy that"
            " the computer has, nobody can open it, whatever they know."
        )
    return [f'<p class="warning">{escape(words)}</p>']


def _table(facts: Facts) -> list[str]:
    what = escape(facts.container) if facts.container else "the partition itself is encrypted"
    length = f"{size(facts.size)} ({facts.size:,} bytes)"
    sources = [*facts.include, *(f"what is listed in {path}" for path in facts.include_from)]
    rows = [
        ("Name", escape(facts.name)),
        ("UUID of the drive", f"<code>{escape(facts.uuid)}</code>"),
        ("File on it", f"<code>{what}</code>" if facts.container else what),
        ("Its size", length if facts.size else "not known: the drive was not plugged in"),
        ("UUID of the volume", f"<code>{escape(facts.volume)}</code> (LUKS2)"),
        ("Fingerprint", f"<code>{escape(facts.fingerprint)}</code>"),
        ("Backed up from", "<br>".join(map(escape, sources))),
        ("Header", f"<code>{escape(facts.header)}</code>, the file beside this page"),
        ("… its SHA-256", f"<code>{escape(facts.header_sha256)}</code>"),
    ]
    return ["<table>", *(f"<tr><th>{th}</th><td>{td}</td></tr>" for th, td in rows), "</table>"]


def _key(facts: Facts) -> list[str]:
    if not facts.recovery:
        return []
    lines = [
        "<h2>Recovery key</h2>",
        "<p>It opens the drive like a passphrase. Type all of it, with the hyphens:</p>",
        f'<p class="key"><code>{escape(facts.recovery)}</code></p>',
    ]
    if facts.picture:
        lines += ["<p>The same as a picture:</p>", facts.picture]
    return lines


def _by_hand(facts: Facts) -> list[str]:
    secret = "a passphrase, or the recovery key above" if facts.recovery else "a passphrase"
    lines = [
        "<h2>Get the files back by hand</h2>",
        "<p>On any Linux with <code>cryptsetup</code>, as root. Plug the drive in.",
        f"<code>cryptsetup open</code> asks for {secret}.</p>",
    ]
    if facts.container:
        lines += [
            "<p>Mount the drive, if the desktop hasn't done so already:</p>",
            *_commands("mount", _mount(facts)),
            "<p>Make a block device of the file:</p>",
            *_commands("loop", _loop(facts)),
            f"<p>If there are several files (<code>{escape(facts.container)}.001</code> is one),"
            " have one device of them all instead:</p>",
            *_commands("join", _join(facts)),
        ]
    header = _open(facts, facts.header)
    where = f"Copy the file <code>{escape(facts.header)}</code> to the computer, and go there."
    if facts.detached:
        lines += [f"<p>{where} Then open the container:</p>", *_commands("open", header)]
    else:
        lines += ["<p>Open the container:</p>", *_commands("open", _open(facts, ""))]
        if not facts.container:
            lines += ["<p>(If there is no such device, <code>lsblk -f</code> shows what is.)</p>"]
        lines += [
            "<p>If this says that it is no LUKS device, or that no key is available with this"
            " passphrase, the header on the drive is damaged, lost or older than this kit."
            f" {where} Then open the container with the header in that file"
            f"{_named(facts)}:</p>",
            *_commands("open-with-the-header", header),
            "<p>(<code>cryptsetup luksHeaderRestore</code> takes that file, too, and writes it to"
            " the drive.)</p>",
        ]
    lines += [
        "<p>Each version is a directory, named after its time (UTC), with the files under the paths"
        " that they had. Look, and copy what you need, for instance:</p>",
        *_commands("look", ["ls /mnt/versions"]),
        f"<pre>cp -a {escape(_example(facts))} /somewhere/else/</pre>",
        "<p>When you are done:</p>",
        *_commands("close", _close(facts)),
    ]
    if facts.container:
        lines += [
            "<p>Or, with several files:</p>",
            *_commands("close-joined", _close_joined(facts)),
        ]
    return lines


def _example(facts: Facts) -> str:
    path = facts.include[0] if facts.include else "/home"
    return shlex.quote(f"/mnt/versions/2026-01-31T12:00:00Z{path}")


def _named(facts: Facts) -> str:
    """What is to be said of a partition whose UUID went with its header."""
    if facts.container:
        return ""
    return ", with the drive's partition (see <code>lsblk</code>) in the place of /dev/sdX1"


def _mount(facts: Facts) -> list[str]:
    device = shlex.quote(f"/dev/disk/by-uuid/{facts.uuid}")
    return ["mkdir -p /media/drive", f"mount {device} /media/drive"]


def _loop(facts: Facts) -> list[str]:
    file = shlex.quote(f"/media/drive/{facts.container}")
    return [f"loop=$(losetup --find --show {file})"]


def _join(facts: Facts) -> list[str]:
    file = shlex.quote(f"/media/drive/{facts.container}")
    return [
        "start=0",
        f"for part in {file} {file}.[0-9][0-9][0-9]; do",
        '    [ -e "$part" ] || continue',
        '    loop=$(losetup --find --show "$part")',
        '    length=$(blockdev --getsz "$loop")',
        '    echo "$start $length linear $loop 0"',
        "    start=$((start + length))",
        "done | dmsetup create backup-parts",
        "loop=/dev/mapper/backup-parts",
    ]


def _open(facts: Facts, header: str) -> list[str]:
    words = f"--header {shlex.quote(header)} " if header else ""
    if facts.container:
        device = '"$loop"'
    elif header:
        device = "/dev/sdX1"
    else:
        device = shlex.quote(f"/dev/disk/by-uuid/{facts.uuid}")
    return [
        f"cryptsetup open {words}{device} backup",
        "mount -o ro /dev/mapper/backup /mnt",
    ]


def _close(facts: Facts) -> list[str]:
    lines = ["umount /mnt", "cryptsetup close backup"]
    if facts.container:
        lines += ['losetup --detach "$loop"', "umount /media/drive"]
    return lines


def _close_joined(facts: Facts) -> list[str]:
    file = shlex.quote(f"/media/drive/{facts.container}")
    return [
        "umount /mnt",
        "cryptsetup close backup",
        "dmsetup remove backup-parts",
        f"for part in {file} {file}.[0-9][0-9][0-9]; do",
        '    [ -e "$part" ] || continue',
        '    losetup --detach "$(losetup --noheadings --output NAME --associated "$part")"',
        "done",
        "umount /media/drive",
    ]


def _commands(what: str, lines: list[str]) -> list[str]:
    return [f'<pre id="{what}">{escape(chr(10).join(lines), quote=False)}</pre>']


def _with_cryptbackd(facts: Facts) -> list[str]:
    node = shlex.quote(f"/dev/disk/by-uuid/{facts.uuid}")
    words = ["cryptback init --adopt", node, "--name", shlex.quote(facts.name)]
    if facts.container:
        words += ["--container", shlex.quote(facts.container)]
    if facts.detached:
        words += ["--header", shlex.quote(facts.header)]
    words += [f"--include {shlex.quote(path)}" for path in facts.include or ("/home",)]
    return [
        "<h2>With cryptbackd</h2>",
        "<p>On a computer that has cryptbackd, and knows nothing of the drive:</p>",
        *_commands("adopt", [" ".join(words)]),
        "<p>It shows a fingerprint: compare it with the one above before you go on.</p>",
    ]
