#!/bin/sh
# Makes this host a node of a berth cloud, or brings its berth up to the brain's version. Served by the brain itself:
#
#   berth node token                     prints the line to type here
#   … | sh -s -- TOKEN                   installs what is missing, joins, starts the agent
#   … | sh                               on a node: upgrades berth's programs; no container is touched
#   … | sh -s -- --remove [--purge]      takes berth off this host with its containers; --purge: also the packages that
#                                        this script installed; --volumes: also the volumes that are left here, which else
#                                        it stops at
set -eu
BRAINS='@BRAINS@'
PIN='@PIN@'
VERSION='@VERSION@'
SUMS='@SUMS@'

PROGRAMS='berth-agent berth-log berth-init'
UNITS='berth-containers.service berth-agent.service'
PACKAGES='containerd runc nftables btrfs-progs ca-certificates'
BIN=/usr/local/bin
SYSTEMD=/etc/systemd/system
ADDED=/etc/berth/packages-added

say() { echo "==> $*"; }
die() {
  echo "error: $1" >&2
  [ $# -lt 2 ] || echo "cure: $2" >&2
  exit 1
}

main() {
  token= remove= purge= volumes=
  for argument in "$@"; do
    case $argument in
    --remove) remove=1 ;;
    --purge) purge=1 ;;
    --volumes) volumes=--volumes ;;
    -*) die "unknown option $argument" "give a token, --remove, or nothing" ;;
    *) token=$argument ;;
    esac
  done
  [ "$(id -u)" = 0 ] || die "this needs root" "pipe it into: sudo sh -s -- …"
  [ -d /run/systemd/system ] || die "this host is not run by systemd" "install berth-agent by hand: see the README"
  if [ -n "$remove" ]; then remove "$purge" "$volumes"; return; fi
  joined=
  [ ! -f /var/lib/berth-agent/node.crt ] || joined=1
  [ -n "$token$joined" ] || die "no token was given, and this host is no node yet" "run \`berth node token\` where the berth command is, and type the line that it prints"

  arch=$(uname -m)
  case $SUMS in
  *"$arch berth-agent "*) ;;
  *) die "this brain has no programs for $arch" "put them into a folder $arch beside the brain's own programs" ;;
  esac
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  packages
  say "fetching berth $VERSION"
  for file in $PROGRAMS $UNITS; do fetch "$file"; done
  install_all
  if [ -z "$joined" ]; then
    chmod 0755 "$work/berth-agent"
    say "looking at this host"
    "$BIN/berth-agent" check --brain "$brain" || die "this host can't be a node yet" "see the lines marked FAIL, then type the same again"
    say "joining"
    # Through a pipe: arguments are visible to everyone on the host.
    printf '%s\n' "$token" | "$BIN/berth-agent" join -
  elif [ -n "$token" ]; then
    say "this host is a node already; the token was not needed"
  fi
  systemctl enable --quiet --now berth-containers.service
  systemctl enable --quiet berth-agent.service
  if [ -n "$changed" ]; then systemctl restart berth-agent.service; else systemctl start berth-agent.service; fi || {
    journalctl -u berth-agent -n 20 --no-pager >&2 || true
    die "the agent does not start" "see the lines above"
  }
  say "done: $("$BIN/berth-agent" version) runs; \`journalctl -u berth-agent -f\` follows it"
}

# The first of the brain's addresses that answers.
reach() { # FILE OUT
  for brain in $BRAINS; do
    curl -fsS --connect-timeout 10 --retry 2 --insecure --pinnedpubkey "$PIN" -o "$2" "https://$brain/install/$1" && return 0
  done
  return 1
}

fetch() { # FILE
  reach "$arch/$1" "$work/$1" || die "$1 can't be fetched from the brain at $BRAINS" "see whether its TCP port can be reached from here, and whether the line is one of this brain"
  want=$(printf '%s\n' "$SUMS" | sed -n "s/^$arch $1 //p")
  got=$(sha256sum "$work/$1" | cut -d' ' -f1)
  [ "$want" = "$got" ] || die "$1 is not what the brain announced" "it may just have been upgraded: type the same again"
}

packages() {
  command -v dpkg-query >/dev/null || {
    for program in containerd runc nft; do
      command -v $program >/dev/null || die "$program is not installed" "install containerd, runc and nftables with this system's package manager, then type the same again"
    done
    return 0
  }
  missing=
  for package in $PACKAGES; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
  done
  # Docker's own package brings containerd and runc under another name.
  case $missing in *containerd*) ! command -v containerd >/dev/null || missing=$(printf '%s' "$missing" | sed 's/ containerd//; s/ runc//') ;; esac
  [ -n "$missing" ] || return 0
  say "installing$missing"
  export DEBIAN_FRONTEND=noninteractive
  dpkg-query -W -f '${Package}\n' | sort >"$work/before"
  apt-get update -qq
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $missing >/dev/null
  dpkg-query -W -f '${Package}\n' | sort >"$work/after"
  mkdir -p /etc/berth
  comm -13 "$work/before" "$work/after" >>"$ADDED"
}

install_all() {
  changed=
  install -d -m 0755 /etc/berth "$BIN"
  for file in $PROGRAMS; do
    cmp -s "$work/$file" "$BIN/$file" && continue
    # A new file each time: a running program keeps its old one.
    install -m 0755 "$work/$file" "$BIN/$file.new"
    mv "$BIN/$file.new" "$BIN/$file"
    changed=1
  done
  for file in $UNITS; do
    cmp -s "$work/$file" "$SYSTEMD/$file" && continue
    install -m 0644 "$work/$file" "$SYSTEMD/$file"
    changed=1
  done
  [ -f /etc/berth/agent.toml ] || echo "# Settings of berth-agent; every key is explained in agent.toml.example." >/etc/berth/agent.toml
  # A power cut right afterwards must not leave empty files.
  sync
  systemctl daemon-reload
}

remove() { # PURGE VOLUMES
  [ -x "$BIN/berth-agent" ] || die "berth-agent is not installed here"
  say "stopping the agent and deleting berth's containers"
  systemctl disable --quiet --now berth-agent.service 2>/dev/null || true
  "$BIN/berth-agent" wipe --images $2 || die "not everything could be deleted; nothing else was touched" "see the lines above, then type the same again"
  systemctl disable --quiet --now berth-containers.service 2>/dev/null || true
  for file in $UNITS; do rm -f "$SYSTEMD/$file"; done
  systemctl daemon-reload
  systemctl stop berth.slice 2>/dev/null || true
  systemctl revert berth.slice 2>/dev/null || true
  added=
  [ ! -f "$ADDED" ] || added=$(cat "$ADDED")
  rm -rf --one-file-system /var/lib/berth-agent /run/berth /var/log/berth
  for file in $PROGRAMS; do rm -f "$BIN/$file"; done
  # A brain may live here, too.
  if [ -f "$SYSTEMD/berth-brain.service" ]; then rm -f /etc/berth/agent.toml "$ADDED"; else rm -rf /etc/berth; fi
  if [ -n "$1" ] && [ -n "$added" ]; then
    # Others may have come to need them since.
    # shellcheck disable=SC2086
    more=$(apt-get -s purge $added | sed -n 's/^\(Remv\|Purg\) \([^ ]*\).*/\2/p' | sort -u | grep -vxF "$added" || true)
    [ -z "$more" ] || die "berth is off this host; its packages stay, since removing them would take these along: $(echo $more)" "remove by hand what you don't need of: $(echo $added)"
    say "removing" $added
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    apt-get purge -y -qq $added >/dev/null
    rmdir /etc/containerd /etc/cni/net.d /etc/cni /opt/containerd /opt/cni/bin /opt/cni 2>/dev/null || true
    case " $(echo $added) " in *" containerd "*) rm -rf --one-file-system /var/lib/containerd /run/containerd ;; esac
  elif [ -n "$added" ]; then
    say "these packages were installed for berth and stay; --purge removes them:" $added
  fi
  say "done: berth is off this host; \`berth node rm\` takes it out of the brain's list"
}

main "$@"
