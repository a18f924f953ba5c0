"""What ``org.cryptback1`` offers, as introspection tells it; part of the interface."""

NAME = "org.cryptback1"
PATH = "/org/cryptback1"
INTERFACE = "org.cryptback1.Manager"

AGENT_PATH = "/org/cryptback1/Agent"
AGENT_INTERFACE = "org.cryptback1.Agent"
"""What an agent exports on its own connection (docs/keys.md); only this service calls it."""

XML = """\
<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">
<node>
  <interface name="org.freedesktop.DBus.Introspectable">
    <method name="Introspect"><arg type="s" direction="out"/></method>
  </interface>
  <interface name="org.freedesktop.DBus.Peer">
    <method name="Ping"/>
    <method name="GetMachineId"><arg type="s" direction="out"/></method>
  </interface>
  <interface name="org.cryptback1.Manager">
    <!-- For everybody. -->
    <method name="ListDrives">
      <arg name="drives" type="aa{sv}" direction="out"/>
    </method>
    <method name="GetDrive">
      <arg name="name" type="s" direction="in"/>
      <arg name="drive" type="a{sv}" direction="out"/>
    </method>
    <method name="GetHistory">
      <arg name="name" type="s" direction="in"/>
      <arg name="limit" type="u" direction="in"/>
      <arg name="runs" type="aa{sv}" direction="out"/>
    </method>
    <method name="GetResult">
      <arg name="run" type="s" direction="in"/>
      <arg name="result" type="a{sv}" direction="out"/>
    </method>
    <!-- Read the answer from the pipe, a line of JSON at a time: docs/dbus.md. -->
    <method name="Find">
      <arg name="pattern" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="lines" type="h" direction="out"/>
    </method>
    <method name="Versions">
      <arg name="name" type="s" direction="in"/>
      <arg name="lines" type="h" direction="out"/>
    </method>
    <method name="Compare">
      <arg name="name" type="s" direction="in"/>
      <arg name="from" type="s" direction="in"/>
      <arg name="to" type="s" direction="in"/>
      <arg name="lines" type="h" direction="out"/>
    </method>
    <!-- For agents, see docs/keys.md. -->
    <method name="RegisterAgent"/>
    <method name="UnregisterAgent"/>
    <!-- For whom polkit allows it: docs/dbus.md. -->
    <method name="Run">
      <arg name="name" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <method name="Verify">
      <arg name="name" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <method name="Cancel">
      <arg name="name" type="s" direction="in"/>
      <arg name="runs" type="as" direction="out"/>
    </method>
    <method name="Eject">
      <arg name="name" type="s" direction="in"/>
      <arg name="runs" type="as" direction="out"/>
    </method>
    <method name="Survey">
      <arg name="device" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="json" type="s" direction="out"/>
    </method>
    <method name="Init">
      <arg name="device" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <method name="Recover">
      <arg name="device" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <!-- What is different about the header on a drive; JSON as of the survey. -->
    <method name="Header">
      <arg name="name" type="s" direction="in"/>
      <arg name="json" type="s" direction="out"/>
    </method>
    <!-- `action`: add, change, remove, enroll-tpm2, enroll-fido2, recovery-key. -->
    <method name="Passphrase">
      <arg name="name" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <method name="Adopt">
      <arg name="name" type="s" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <method name="Repair">
      <arg name="name" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <method name="Restore">
      <arg name="name" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <!-- Two steps: when the phase is `browsing`, mount, and hand that over (HandOver, `mount`). -->
    <method name="Browse">
      <arg name="name" type="s" direction="in"/>
      <arg name="options" type="a{sv}" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <method name="Close">
      <arg name="name" type="s" direction="in"/>
      <arg name="runs" type="as" direction="out"/>
    </method>
    <!-- What a recovery kit is made of: facts as JSON, and the stored header. -->
    <method name="Kit">
      <arg name="name" type="s" direction="in"/>
      <arg name="json" type="s" direction="out"/>
      <arg name="header" type="h" direction="out"/>
    </method>
    <method name="KitWritten">
      <arg name="name" type="s" direction="in"/>
      <arg name="sha256" type="s" direction="in"/>
    </method>
    <method name="Forget">
      <arg name="name" type="s" direction="in"/>
      <arg name="json" type="s" direction="out"/>
    </method>
    <method name="Resize">
      <arg name="name" type="s" direction="in"/>
      <arg name="size" type="s" direction="in"/>
      <arg name="run" type="s" direction="out"/>
    </method>
    <!-- To be written to, and closed; for the purpose `recovery-key`: to be read. -->
    <method name="HandOver">
      <arg name="run" type="s" direction="in"/>
      <arg name="purpose" type="s" direction="in"/>
      <arg name="passphrase" type="h" direction="out"/>
    </method>
    <signal name="DriveChanged">
      <arg name="name" type="s"/>
      <arg name="drive" type="a{sv}"/>
    </signal>
    <signal name="JobFinished">
      <arg name="run" type="s"/>
      <arg name="result" type="a{sv}"/>
    </signal>
    <signal name="Reminder">
      <arg name="name" type="s"/>
      <arg name="days" type="u"/>
    </signal>
  </interface>
</node>
"""
