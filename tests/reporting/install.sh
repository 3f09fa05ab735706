#!/bin/bash
# Installs the browser that the tests of reports need and this machine lacks: where it may, else it says why, and they skip.
set -uo pipefail
missing=()
for package in chromium chromium-driver; do
    if ! dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
        missing+=("$package")
    fi
done
if ((${#missing[@]} == 0)); then exit 0; fi
if ! command -v apt-get >/dev/null; then
    echo "test-browser: no apt-get to install ${missing[*]} with: tests that need them are skipped"
elif ((EUID != 0)); then
    echo "test-browser: only root may install ${missing[*]}: tests that need them are skipped"
else
    export DEBIAN_FRONTEND=noninteractive
    install=(apt-get install --yes --quiet --no-install-recommends "${missing[@]}")
    # Without lists of packages the first try finds none.
    if ! "${install[@]}" && ! { apt-get update --quiet && "${install[@]}"; }; then
        echo "test-browser: apt-get did not install ${missing[*]}: tests that need them are skipped"
    fi
fi
