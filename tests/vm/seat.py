"""An ordinary user who sits at the machine: commands in an active local session."""

from __future__ import annotations

from tests.machine import Machine
from tests.machine.guest import Result

PAM = """\
account required pam_permit.so
session required pam_permit.so
session required pam_systemd.so
"""
VT = 2
TO_THE_FRONT = f"import fcntl; fcntl.ioctl(open('/dev/tty0', 'wb'), 0x5606, {VT})"
WAIT = """
until [ "$(loginctl show-session "$XDG_SESSION_ID" -P Active)" = yes ]; do sleep 0.1; done
exec "$@"
"""


def at_the_seat(vm: Machine, *command: str, check: bool = True, timeout: float = 120) -> Result:
    """Run a command as the user `me` in a session on seat0, whose terminal is at the front."""
    return vm.run(words(vm, *command), check=check, timeout=timeout)


def words(vm: Machine, *command: str) -> list[str]:
    """The command that has another one run as :func:`at_the_seat` does."""
    vm.push("/etc/pam.d/cryptback-test", PAM)
    vm.run(["python3", "-I", "-c", TO_THE_FRONT])
    environment = {
        "XDG_SEAT": "seat0",
        "XDG_VTNR": str(VT),
        "XDG_SESSION_TYPE": "tty",
        "XDG_SESSION_CLASS": "user",
    }
    run = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec"]
    run += ["--property=User=me", "--property=PAMName=cryptback-test"]
    run += [f"--setenv={key}={value}" for key, value in environment.items()]
    shell = ["/bin/sh", "-c", WAIT, "sh"]
    return [*run, "--", *shell, *command]


def sit_down(vm: Machine) -> None:
    """Have the user `me` sit at the machine until its end: an active session, as after a login."""
    login = ["systemd-run", "--unit=seat", "--property=PAMName=login", "--property=User=me"]
    login += [f"--property=TTYPath=/dev/tty{VT}", "--property=StandardInput=tty"]
    vm.run([*login, "sleep", "infinity"])
    vm.run(["python3", "-I", "-c", TO_THE_FRONT])
    script = (
        "until loginctl show-user me -p Sessions --value | xargs -rn1 loginctl show-session"
        " | grep -q '^Active=yes'; do sleep 0.2; done"
    )
    vm.run(["timeout", "30", "sh", "-c", script])
