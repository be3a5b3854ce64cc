#!/usr/bin/env bash
# Build the documentation, without network access. Needs requirements-docs.txt and requirements.txt.
#
#   bash docs/build.sh             makes build/site/index.html, whose links to code lead to the files of this checkout
#   bash docs/build.sh FOLDER ...  with other settings of Sphinx
#   NSNN_REPOSITORY=https://... bash docs/build.sh FOLDER      for a server: links to code lead to files under an address
set -euo pipefail
unset CDPATH
here="$(dirname "${BASH_SOURCE[0]}")"
# A fresh environment, because Sphinx repeats no warning about a page that it has read before.
exec "${PYTHON:-python}" -m sphinx --fail-on-warning --keep-going --fresh-env --quiet --jobs auto \
    "$here" "${1:-$here/../build/site}" "${@:2}"
