#!/bin/sh
# Write requirements.lock from pyproject.toml. Usage: write_lock.sh UV, with UV the path of the uv program.
set -eu
uv=$1
new=$(mktemp)
trap 'rm -f "$new"' EXIT
cat > "$new.head" <<'HEAD'
# Every package that .venv holds, for every Python version and platform lzero supports, with the hashes of its files.
# Made by `make lock` from pyproject.toml; installed by the Makefile with --require-hashes. Do not edit.
HEAD
# setuptools is locked too: the editable install builds the native shim without fetching anything more.
echo 'setuptools>=77' | "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
    --extra test --extra lint pyproject.toml - > "$new"
cat "$new.head" "$new" > requirements.lock
rm -f "$new.head"
