# SPDX-License-Identifier: MIT
# Read by the scripts that park sessions.

# stored N: there are N descriptors in holdfastd's store
stored() { [ "$(systemctl show -P NFileDescriptorStore holdfastd)" = "$1" ]; }

# names: what they are called
names() { systemd-analyze --no-pager --no-legend fdstore holdfastd | cut -d ' ' -f 1 | sed '/^FDNAME$/d'; }

# another PID: holdfastd is ready, and another process than that one
another() { [ "$(systemctl is-active holdfastd)" = active ] && [ "$(systemctl show -P MainPID holdfastd)" != "$1" ]; }
