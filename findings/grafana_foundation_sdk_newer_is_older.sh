#!/usr/bin/env bash
# grafana-foundation-sdk (Grafana's own library for dashboards as code), as of 1769699998!10.1.0: its versions sort by when they were
# built, and only then by the Grafana whose schemas they have. Each release is built for eleven Grafanas, 11.6 first and 10.1 last, with
# the second of the build as the version's epoch, and an epoch (the number before `!`) outranks all that follows. So without a pin pip
# installs the schemas of the oldest Grafana; `>=11.6`, which any epoch satisfies, too; and what people write to hold a series
# (`==11.6.0`, `~=11.6.0`, `>=11.6,<12`) is satisfied by nothing, for these have epoch 0. Only the full version with its
# epoch names a Grafana. What is missing then shows when it is imported, as the builder of the newer logs panel.
#
# Why, in PEP 440: versions are compared by epoch first, and a specifier without one has epoch 0.
#
# Seen, with nothing newer than 1769699998!10.1.0 allowed:
#     no bound: 1769699998!10.1.0
#     >=11.6: 1769699998!10.1.0
#     >=11.6,<12: none
#     ==11.6.0: none
#     ~=11.6.0: none
#     ==1769699379!11.6.0: 1769699379!11.6.0
#     1769699998!10.1.0: no logsnew; 1769699379!11.6.0: logsnew
#
# Installs the package into temporary environments, and fails if a line is another.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
NAME=grafana-foundation-sdk
NEWEST='1769699998!10.1.0'

resolve() { # the version that pip would install, or none; $1: a specifier
  local folder
  folder=$(mktemp -d "$work/XXXXXX")
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$NAME$1" >/dev/null 2>&1 || true
  (cd "$folder" && ls) | sed -n 's/^grafana_foundation_sdk-\(.*\)-py3-none-any\.whl$/\1/p' | grep . || echo none
}

has_logsnew() {
  python3 -m venv "$work/venv$2"
  "$work/venv$2/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$NAME==$1" 2>/dev/null
  "$work/venv$2/bin/python" -c 'import grafana_foundation_sdk.builders.logsnew' 2>/dev/null && echo logsnew || echo "no logsnew"
}

found=$(
  echo "no bound: $(resolve "<=$NEWEST")"
  echo ">=11.6: $(resolve ">=11.6,<=$NEWEST")"
  echo ">=11.6,<12: $(resolve '>=11.6,<12')"
  echo "==11.6.0: $(resolve '==11.6.0')"
  echo "~=11.6.0: $(resolve '~=11.6.0')"
  echo "==1769699379!11.6.0: $(resolve '==1769699379!11.6.0')"
  echo "1769699998!10.1.0: $(has_logsnew '1769699998!10.1.0' old); 1769699379!11.6.0: $(has_logsnew '1769699379!11.6.0' new)"
)
echo "$found"
diff <(sed -n 's/^#     //p' "$0") <(echo "$found") || {
  echo 'the package or pip behaves otherwise now: see the lines above (<: as written here, >: as found)' >&2
  exit 1
}
echo 'as described: the newest version is for the oldest Grafana'
