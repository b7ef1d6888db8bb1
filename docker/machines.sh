# Machines for tests, in namespaces of this one: each with a network and an address, a host name,
# processes, /tmp, /run and /dev/shm of its own. Sourced by scripts that run inside `unshare --net --uts
# --ipc --mount --pid --fork --kill-child --mount-proc`, with which everything ends. Needs root.
# shellcheck shell=bash

SHARED=/mnt # the folder that all machines see
NETWORK=10.213.77
declare -A PIDS=() # machine → its process 1, as seen from here

say() { printf '\n%s == %s\n' "$(date -u +%H:%M:%S)" "$*"; }

prepare_machines() { # FOLDER NAME=NUMBER...: what they share, and the names they know each other by
  local folder=$1 pair
  shift
  mount --make-rprivate /
  mount --bind "$folder" "$SHARED"
  mount -t tmpfs tmpfs /run
  mkdir -p /run/netns
  hostname outside
  echo '127.0.0.1 localhost' >"$SHARED/hosts"
  for pair in "$@"; do echo "$NETWORK.${pair#*=} ${pair%=*}" >>"$SHARED/hosts"; done
  mount --bind "$SHARED/hosts" /etc/hosts
  ip link set lo up
  ip link add machines type bridge
  ip link set machines up
}

machine() { # NAME NUMBER COMMAND...: a machine whose process 1 ends in COMMAND; its output: NAME.log
  local name=$1 number=$2
  shift 2
  ip netns add "$name"
  ip link add "v-$name" type veth peer name eth0 netns "$name"
  ip link set "v-$name" master machines up
  ip -n "$name" addr add "$NETWORK.$number/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
  nsenter --net="/run/netns/$name" unshare --uts --ipc --mount --pid --fork --kill-child --mount-proc \
    bash -euc '
      hostname "$1"; shift
      for place in /tmp /run /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$place"; done
      "$@" & main=$! # this shell stays: process 1 must bury the orphans
      trap "kill -TERM $main" TERM
      while kill -0 "$main" 2>/dev/null; do wait "$main" || true; done' machine "$name" "$@" >>"$SHARED/$name.log" 2>&1 &
  until pgrep -P $! >/dev/null; do sleep 0.1; done
  PIDS[$name]=$(pgrep -P $!)
}

kill_machine() { # NAME: at once; no process of it says good-bye
  kill -KILL "${PIDS[$1]}"
  sleep 1
  ip netns delete "$1"
  ip link delete "v-$1" 2>/dev/null || true
}

inside() { # NAME COMMAND...: in that machine, as root
  local name=$1
  shift
  nsenter --target "${PIDS[$name]}" --all -- "$@"
}

wait_for() { # SECONDS TEXT COMMAND...
  local until=$((SECONDS + $1)) text=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    test "$SECONDS" -lt "$until" || die "gave up waiting until $text"
    sleep 1
  done
  echo "$(date -u +%H:%M:%S) $text"
}
