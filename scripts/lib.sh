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

# What the image of the database tests is made of. Debian makes and starts a database with the package unless it is told not to.
install_databases() {
  command -v sqlite3 >/dev/null 2>&1 || install_these sqlite3
  [ -z "$(postgres_dir)" ] || return 0
  if command -v apt-get >/dev/null && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  install_these postgresql
}

# Where the newest PostgreSQL's programs are; nothing if there is none.
postgres_dir() { find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n1; }

install_these() { # PACKAGES, one string
  local missing=$1
  [ -z "${missing// /}" ] && return 0
  command -v apt-get >/dev/null || die "these are missing: $missing" "install them with this system's package manager and try again"
  say "installing $missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || apt-get update
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends -o Dpkg::Options::=--force-confold $missing >/dev/null
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

# Makes the root of an image whose shell and tools are busybox's.
busybox_root() { # ROOT
  local root=$1 busybox applet
  busybox=$(command -v busybox) || die "busybox is not installed" "apt-get install busybox-static"
  mkdir -p "$root"/{bin,etc,tmp,root,var,dev,proc,sys}
  chmod 1777 "$root/tmp"
  install -m 0755 "$busybox" "$root/bin/busybox"
  # `busybox --list` names the applets this build has; hard links keep the layer small.
  for applet in $("$busybox" --list); do [ "$applet" = busybox ] || ln "$root/bin/busybox" "$root/bin/$applet"; done
}

# Makes an OCI image layout in a tar archive, of one layer: the same digests each time for the same files.
pack_image() ( # ROOT OUT.tar NAME CREATED_BY
  root=$1 out=$2 name=$3 by=$4
  case $(uname -m) in x86_64) arch=amd64 ;; aarch64) arch=arm64 ;; *) arch=$(uname -m) ;; esac
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  layout=$work/layout
  mkdir -p "$layout/blobs/sha256"
  # Sorted names and a fixed time.
  tar -C "$root" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$work/layer.tar" .
  diff_id=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
  gzip -n -9 "$work/layer.tar"
  blob() { # FILE → its digest; moves it into the layout
    local digest; digest=$(sha256sum "$1" | cut -d' ' -f1); mv "$1" "$layout/blobs/sha256/$digest"; echo "$digest"
  }
  layer_size=$(stat -c %s "$work/layer.tar.gz"); layer=$(blob "$work/layer.tar.gz")
  printf '{"architecture":"%s","os":"linux","created":"1970-01-01T00:00:00Z","config":{"Env":["PATH=/bin"],"Cmd":["/bin/sh"],"WorkingDir":"/"},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"%s"}]}' "$arch" "$diff_id" "$by" >"$work/config"
  config_size=$(stat -c %s "$work/config"); config=$(blob "$work/config")
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:%s","size":%s}]}' "$config" "$config_size" "$layer" "$layer_size" >"$work/manifest"
  manifest_size=$(stat -c %s "$work/manifest"); manifest=$(blob "$work/manifest")
  printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"%s"}}]}' "$manifest" "$manifest_size" "$arch" "$name" >"$layout/index.json"
  tar -C "$layout" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$out" oci-layout index.json blobs
  echo "$out: $name, $(stat -c %s "$out") bytes"
)
