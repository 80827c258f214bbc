#!/bin/bash
# systemd-sandbox.sh - boot a real systemd as PID 1 in private namespaces, run one
# command inside, tear everything down. For test suites. Needs root; no network
# but a private loopback; never touches the host's systemd, /run, sysctls or kmsg.
#
#   systemd-sandbox.sh [-t SECS] [-b SECS] [-u UNITDIR]... [-B SRC:DST]... [-l LOGFILE] [-j] [-k] [--] COMMAND [ARG...]
#
#   -t SECS     hard limit for COMMAND (default 60); the sandbox is killed after it
#   -b SECS     limit for the boot (default 15)
#   -u UNITDIR  copy *.service *.socket *.target *.timer *.slice *.path and *.d/ from here
#   -B SRC:DST  bind-mount host path SRC at DST inside; DST should be below /run, which is
#               private: PrivateTmp=, ProtectHome= hide /tmp, /var/tmp, /home and /root
#   -l LOGFILE  keep what PID 1 logged (else it is shown only when something failed)
#   -j          also run systemd-journald inside (default: no journald at all)
#   -k          keep the work directory, share/ in it is $SANDBOX_DIR (prints its name on stderr)
#
# COMMAND runs inside all namespaces, as root; $SANDBOX_DIR (= /run/share, mode 1777) is a
# directory that hardened units can reach too, $D/share outside. The host's files are
# visible READ-ONLY (SDBOX_RW=1 in the environment: writable); /run, /tmp, /var/tmp,
# /var/lib, /var/log, /var/cache are private tmpfs; what -B binds is writable.
# systemctl, systemd-notify, nsenter'd python etc. work there; units live in /run/units.
# exit: COMMAND's status; 77 = this machine can't (skip the test); 124 = COMMAND
# timed out; 125 = the sandbox did not boot.
set -u
T=60 B=15 UNITS=() BINDS=() LOG= JOURNALD=0 KEEP=0
while getopts t:b:u:B:l:jk o; do case $o in
  t) T=$OPTARG;; b) B=$OPTARG;; u) UNITS+=("$OPTARG");; B) BINDS+=("$OPTARG");; l) LOG=$OPTARG;;
  j) JOURNALD=1;; k) KEEP=1;; *) sed -n '2,28p' "$0" >&2; exit 2;; esac; done
shift $((OPTIND-1))
[ $# -gt 0 ] || { sed -n '2,28p' "$0" >&2; exit 2; }
skip() { echo "systemd-sandbox: skip: $*" >&2; exit 77; }
[ "$(id -u)" = 0 ] || skip "not root"
SYSTEMD=
for p in /usr/lib/systemd/systemd /lib/systemd/systemd; do [ -x $p ] && SYSTEMD=$p && break; done
[ -n "$SYSTEMD" ] || skip "no systemd binary"
for c in unshare nsenter setsid setpriv timeout mount systemctl awk find; do
  command -v $c >/dev/null || skip "no $c"; done
# where cgroup2 lives on this host (pure v2, or the 'unified' leg of a hybrid host)
CG2=$(awk '$3=="cgroup2"{print $2; exit}' /proc/self/mounts)
[ -n "$CG2" ] || skip "no cgroup2 mount"
unshare --mount --pid --fork --uts --ipc --net --cgroup true 2>/dev/null || skip "unshare not permitted"

# stale: cgroups and directories of runs that were SIGKILLed (their script's pid is gone)
for g in "$CG2"/sdbox.*.*; do
  [ -d "$g" ] || continue
  p=${g##*/sdbox.}; d=${TMPDIR:-/tmp}/sdbox.${p#*.}; p=${p%%.*}
  kill -0 "$p" 2>/dev/null && continue
  grep -q 'populated 0' "$g/cgroup.events" 2>/dev/null || continue
  find "$g" -depth -type d -exec rmdir {} + 2>/dev/null
  [ -d "$d" ] && rm -rf -- "$d"
done

D=$(mktemp -d "${TMPDIR:-/tmp}/sdbox.XXXXXX") || exit 125
CG=$CG2/sdbox.$$.${D##*.}
INIT= UNSHARE= READER= rc=125

cleanup() {
  trap '' INT TERM HUP
  if [ -n "$UNSHARE" ]; then
    # 1. everything in our own cgroup, and only that (cgroup.kill: Linux >= 5.14)
    [ -w "$CG/cgroup.kill" ] && echo 1 2>/dev/null >"$CG/cgroup.kill"
    # 2. the init of the namespace: its death kills the whole PID namespace
    [ -n "$INIT" ] && kill -KILL "$INIT" 2>/dev/null
    kill -KILL "$UNSHARE" 2>/dev/null
    wait "$UNSHARE" 2>/dev/null
  fi
  if [ -n "$READER" ]; then sleep 0.05; kill "$READER" 2>/dev/null; wait "$READER" 2>/dev/null; fi
  local i
  for i in $(seq 1 50); do   # the kernel empties a killed cgroup asynchronously
    [ -d "$CG" ] || break
    find "$CG" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -d "$CG" ] && sleep 0.1
  done
  [ -d "$CG" ] && echo "systemd-sandbox: WARNING: $CG is left behind" >&2
  if [ -n "$LOG" ]; then cp "$D/console.log" "$LOG" 2>/dev/null
  elif [ $rc = 125 ]; then sed 's/^/PID1: /' "$D/console.log" >&2; fi
  if [ $KEEP = 1 ]; then echo "systemd-sandbox: kept $D" >&2; else rm -rf -- "$D"; fi
}
trap cleanup EXIT
trap 'rc=130; exit 130' INT; trap 'rc=143; exit 143' TERM HUP

mkdir -p "$D/units" "$D/share"; chmod 755 "$D" "$D/units"; chmod 1777 "$D/share"
for t in default basic sysinit shutdown sockets multi-user umount timers paths slices \
         local-fs network network-online nss-lookup; do
  printf '[Unit]\nDescription=%s (sandbox)\nDefaultDependencies=no\n' $t >"$D/units/$t.target"; done
for u in "${UNITS[@]}"; do
  [ -d "$u" ] || { echo "systemd-sandbox: no such unit dir: $u" >&2; exit 2; }
  for f in "$u"/*.service "$u"/*.socket "$u"/*.target "$u"/*.timer "$u"/*.slice "$u"/*.path "$u"/*.d; do
    [ -e "$f" ] && cp -r -- "$f" "$D/units/"; done; done
if [ $JOURNALD = 1 ]; then
  cat >"$D/units/systemd-journald.service" <<'U'
[Unit]
DefaultDependencies=no
Requires=systemd-journald.socket
After=systemd-journald.socket
[Service]
Type=notify
ExecStart=/lib/systemd/systemd-journald
Restart=always
RestartSec=0
Sockets=systemd-journald.socket
StandardOutput=null
FileDescriptorStoreMax=4224
U
  cat >"$D/units/systemd-journald.socket" <<'U'
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/systemd/journal/stdout
ListenDatagram=/run/systemd/journal/socket
SocketMode=0666
PassCredentials=yes
PassSecurity=yes
ReceiveBuffer=8M
U
fi
cat >"$D/start.sh" <<'S'
set -e
D=$1; SYSTEMD=$2; shift 2
mount --make-rprivate /
# a cgroup tree of our own: pure v2, rooted (cgroup namespace) at our own cgroup
umount -R -l /sys/fs/cgroup 2>/dev/null || :
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# private /run (NOT the host's), hidden kmsg, console to a file, read-only sysctls
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run
mkdir -p /run/systemd/system /run/lock
mkdir /run/share /run/units
mount --bind "$D/share" /run/share
mount --bind "$D/units" /run/units
for b in "$@"; do
  mkdir -p "${b#*:}"
  mount --bind "${b%%:*}" "${b#*:}"
done
# PID 1 logs to kmsg; kmsg is a fifo of ours (a plain file is not a tty, so it can't be
# the console, and without O_APPEND several writers would overwrite one another)
mount --bind "$D/kmsg" /dev/kmsg
mount --bind /dev/null /dev/console 2>/dev/null || :
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
# the host's files are visible but read-only; what services write goes to tmpfs
for d in /tmp /var/tmp /var/lib /var/log /var/cache; do
  [ -d $d ] && [ ! -L $d ] || continue
  case $d in */tmp) m=1777;; *) m=755;; esac
  mount -t tmpfs -o mode=$m,nosuid,nodev tmpfs $d
done
# private machine-id and an own manager configuration, nothing from the host's /etc/systemd
mkdir -p /run/sdbox/etc-systemd
echo 0123456789abcdef0123456789abcdef >/run/sdbox/machine-id
[ -e /etc/machine-id ] && mount --bind /run/sdbox/machine-id /etc/machine-id
printf '[Manager]\nLogTarget=kmsg\nLogLevel=info\nLogColor=no\nShowStatus=no\nDefaultTimeoutStopSec=10s\nDefaultTimeoutStartSec=20s\nRuntimeWatchdogSec=0\n' >/run/sdbox/etc-systemd/system.conf
[ -d /etc/systemd ] && mount --bind /run/sdbox/etc-systemd /etc/systemd
ip link set lo up 2>/dev/null || :
[ "${SDBOX_RW:-}" = 1 ] || mount -o remount,bind,ro /
cd /
exec env -i container=sdbox PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  SYSTEMD_UNIT_PATH=/run/units SYSTEMD_LOG_TARGET=kmsg \
  "$SYSTEMD" --system --unit=default.target --log-target=kmsg --show-status=no
S
: >"$D/console.log"
mkfifo "$D/kmsg"
# (pdeathsig: even when this script is SIGKILLed nothing survives it; see also "stale")
setpriv --pdeathsig KILL cat <>"$D/kmsg" >>"$D/console.log" &
READER=$!
mkdir "$CG" || skip "can't make a cgroup under $CG2"

# the launcher moves itself into our cgroup first, so that --cgroup roots there
sh -c 'echo $$ >"$1/cgroup.procs" || exit 1; shift; exec "$@"' sh "$CG" \
  setsid setpriv --pdeathsig KILL unshare --fork --kill-child=KILL --pid --mount --uts --ipc --net --cgroup --mount-proc \
  --propagation private sh "$D/start.sh" "$D" "$SYSTEMD" "${BINDS[@]}" >>"$D/console.log" 2>&1 </dev/null &
UNSHARE=$!

# wait for: child of unshare that IS systemd and answers on its private socket
end=$(( $(date +%s) + B ))
while :; do
  kill -0 "$UNSHARE" 2>/dev/null || { echo "systemd-sandbox: init died at boot" >&2; exit 125; }
  [ -n "$INIT" ] || INIT=$(cat /proc/$UNSHARE/task/$UNSHARE/children 2>/dev/null | awk '{print $1}')
  if [ -n "$INIT" ] && [ "$(cat /proc/$INIT/comm 2>/dev/null)" = systemd ]; then
    s=$(timeout 5 nsenter -t "$INIT" -m -p -u -i -n -C systemctl is-system-running 2>/dev/null)
    case $s in running|degraded) break;; esac
  fi
  [ "$(date +%s)" -lt $end ] || { echo "systemd-sandbox: no boot in ${B}s (state: ${s:-none})" >&2; exit 125; }
  sleep 0.05
done
if [ $JOURNALD = 1 ]; then
  timeout 10 nsenter -t "$INIT" -m -p -u -i -n -C systemctl start systemd-journald.socket systemd-journald.service ||
    { echo "systemd-sandbox: journald did not start" >&2; exit 125; }
fi
echo "$INIT" >"$D/init.new" && mv "$D/init.new" "$D/init"   # for whoever enters by nsenter from outside
# The command gets its own session; timeout TERMs it, then KILLs it 2 s later.
# (nsenter -p forks, so the command is a child in the PID namespace; at cleanup
# whatever it left is killed with the namespace.)
SANDBOX_DIR=/run/share SANDBOX_UNITS=/run/units \
  timeout -k 2 "$T" nsenter -t "$INIT" -m -p -u -i -n -C -- "$@" <&0 &
wait $!   # in the background, so that a TERM or INT of this script acts at once
rc=$?
[ $rc = 137 ] && rc=124
exit $rc
