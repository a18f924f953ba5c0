"""The kinds of input, by name."""

from __future__ import annotations

from tests.fuzz.fuzzer import Fuzzer
from tests.fuzz.kinds import (
    bus_arguments,
    configuration,
    lists,
    luks2_header,
    manifests,
    mountinfo,
    questions,
    resize_notes,
    restore_packets,
    rsync_output,
    superblocks,
    udev_properties,
    version_records,
    worker_protocol,
)

FUZZERS: dict[str, Fuzzer] = {
    each.name: each
    for each in (
        configuration.FUZZER,
        luks2_header.FUZZER,
        udev_properties.FUZZER,
        rsync_output.FUZZER,
        worker_protocol.FUZZER,
        restore_packets.FUZZER,
        bus_arguments.FUZZER,
        manifests.FUZZER,
        version_records.FUZZER,
        questions.FUZZER,
        lists.FUZZER,
        mountinfo.FUZZER,
        superblocks.FUZZER,
        resize_notes.FUZZER,
    )
}
