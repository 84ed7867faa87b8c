# For scripts: simulated peers around a relay of the script's own. To be sourced.

fail() { echo "$0: $*" >&2; exit 1; }
step() { printf '\n-- %s (%ss)\n' "$*" "$SECONDS"; }

# So many ports that were free a moment ago.
free_ports() {
    python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

# Starts Jira and a GitLab, whose relay has this address. Sets keys, site, gitlab: their addresses.
start_peers() {
    coproc PEERS { exec "${CARGO_TARGET_DIR:-target}/debug/examples/peers" --relay "$1"; }
    peers_pid=$PEERS_PID
    read -r keys site gitlab <&"${PEERS[0]}"
}

# An order to the peers, and what they must answer.
order() {
    local answer
    echo "$1" >&"${PEERS[1]}"
    read -r -t 60 answer <&"${PEERS[0]}" || fail "$1: no answer"
    [[ $answer == "$2" ]] || fail "$1: $answer instead of $2"
}

# Waits until a command succeeds, or the process that it is about is gone.
until_well() {
    local pid=$1
    shift
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return; fi
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

# Ends what was started, by its number.
end() {
    local pid
    for pid in "$@"; do
        if [[ -n $pid ]]; then
            kill "$pid" 2>/dev/null || true
            wait "$pid" 2>/dev/null || true
        fi
    done
}
