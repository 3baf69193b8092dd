# Shared by the scripts beside it; sourced, not run.
# shellcheck shell=bash
set -euo pipefail

BERTH_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
BERTH_BIN=${BERTH_BIN:-/usr/local/bin}
BERTH_RUN=/run/berth
BERTH_LOG=/var/log/berth
PROGRAMS=(berth berth-brain berth-agent berth-log berth-init)

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'cure: %s\n' "$2" >&2; exit 1; }

need_root() {
  [ "$(id -u)" = 0 ] || die "this needs root: it sets up cgroups, mounts and network namespaces" "sudo $0 $*"
}

has_systemd() { [ -d /run/systemd/system ]; }

# Packages by the command or file that proves them present.
missing_packages() {
  local want=(
    containerd:containerd runc:runc nft:nftables btrfs:btrfs-progs mkfs.btrfs:btrfs-progs ip:iproute2 ping:iputils-ping
    update-ca-certificates:ca-certificates protoc:protobuf-compiler cc:gcc make:make busybox:busybox-static tar:tar gzip:gzip nsenter:util-linux python3:python3
  )
  local pair
  for pair in "${want[@]}"; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || printf '%s\n' "${pair#*:}"
  done | sort -u
  # protobuf's own .proto files are a package apart.
  [ -f /usr/include/google/protobuf/any.proto ] || echo libprotobuf-dev
}

install_packages() { install_these "$(missing_packages | sort -u | tr '\n' ' ')"; }

# What makes the lab's machines; the emulator itself comes unpacked, see tests/src/lab/image.rs.
install_lab_packages() {
  local pair missing=
  for pair in mmdebstrap:mmdebstrap mke2fs:e2fsprogs strip:binutils setpriv:util-linux dpkg-deb:dpkg; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=" ${pair#*:}"
  done
  install_these "$missing"
}

install_these() { # PACKAGES, one string
  local missing=$1
  [ -z "${missing// /}" ] && return 0
  command -v apt-get >/dev/null || die "these are missing: $missing" "install them with this system's package manager and try again"
  say "installing $missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || apt-get update
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# cargo may belong to the person who called sudo.
find_cargo() {
  local home candidate
  home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
  for candidate in "$(command -v cargo || true)" "$home/.cargo/bin/cargo" ~root/.cargo/bin/cargo /usr/bin/cargo; do
    [ -n "$candidate" ] && [ -x "$candidate" ] && { echo "$candidate"; return; }
  done
  die "no Rust toolchain found" "install Rust 1.89 or newer, for example with rustup, and try again"
}

# Runs cargo as the owner of the checkout, so that no root-owned files stay behind in it.
run_cargo() {
  local cargo owner
  cargo=$(find_cargo)
  owner=$(stat -c %U "$BERTH_ROOT")
  if [ "$(id -u)" = 0 ] && [ "$owner" != root ] && [ "$owner" = "${SUDO_USER:-}" ]; then
    (cd "$BERTH_ROOT" && sudo -u "$owner" -H env "PATH=$(dirname "$cargo"):$PATH" cargo "$@")
  else
    (cd "$BERTH_ROOT" && env "PATH=$(dirname "$cargo"):$PATH" cargo "$@")
  fi
}

target_dir() { echo "${CARGO_TARGET_DIR:-$BERTH_ROOT/target}"; }

# wait_for SECONDS WHAT COMMAND…: until the command succeeds.
wait_for() {
  local seconds=$1 what=$2 i
  shift 2
  for ((i = 0; i < seconds * 5; i++)); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.2
  done
  return 1
}

containerd_answers() { ctr --address /run/containerd/containerd.sock version; }

# berth-init runs as PID 1 inside any image, so it brings its C library along. Only its own link differs.
build_init() { # [--release]
  run_cargo rustc --locked -p berth-agent --bin berth-init "$@" -- -C target-feature=+crt-static
}
