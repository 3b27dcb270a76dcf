#!/usr/bin/env bash
# Installs the real servers and tools that tests use, from Debian, where they are missing and this user may do so.
# As another user it says what is missing; the tests that need it are skipped then, with the reason.
# With names of programs as arguments: these only.
set -euo pipefail

# program -> Debian package
declare -A packages=(
  [initdb]=postgresql
  [mosquitto]=mosquitto
  [swupdate]=swupdate
  [nginx]=nginx-light
  [openssl]=openssl
  [cpio]=cpio
  [ip]=iproute2
  [softhsm2-util]=softhsm2
  [strace]=strace
  [faketime]=faketime
  [node]=nodejs
  [npm]=npm
  [chromium]=chromium
  [cc]="gcc libc6-dev"
  [clang]=clang
  [cmake]=cmake
  [valgrind]=valgrind
  [arm-none-eabi-gcc]="gcc-arm-none-eabi libnewlib-arm-none-eabi"
  [qemu-system-arm]=qemu-system-arm
)

missing=()
wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=("${!packages[@]}")
for program in "${wanted[@]}"; do
  PATH="$PATH:/usr/sbin:/sbin:$(echo /usr/lib/postgresql/*/bin | tr " " :)" command -v "$program" >/dev/null || missing+=(${packages[$program]})
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "what needs them is skipped: ${missing[*]} (Debian: apt-get install ${missing[*]})"
  exit 0
fi

echo "installing: ${missing[*]}"
# Debian starts a service that it installs; tests start their own, on ports of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install --yes --quiet=2 --no-install-recommends "${missing[@]}")
"${install[@]}" >/dev/null 2>&1 || { apt-get update --quiet=2 && "${install[@]}" >/dev/null; }
