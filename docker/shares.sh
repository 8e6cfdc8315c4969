#!/bin/bash
# One manifest by many machines that have nothing in common but their storage (docs/cluster.md):
#   docker/shares.sh cut     PHOTOS OUT NUMBER           lists of photographs, one for each share
#   docker/shares.sh build   PHOTOS OUT INDEX [FLAGS]    the photographs of one list, by one machine
#   docker/shares.sh combine PHOTOS OUT [FLAGS]          one manifest of all, without building again
# FLAGS are those of `lasr build`, the same in each call, paths absolute. Every step may be repeated.
set -euo pipefail

step=$1 photos=$(realpath "$2") out=$(realpath --canonicalize-missing "$3")
shift 3
name=${out%.parquet}
shares=$name.shares
export LASR_WEIGHTS=${LASR_WEIGHTS:-$PWD/data/weights}

cut_list() { # the lists stay as they are once made: a repeated share finds what it has finished
    [ -e "$shares/all" ] && return
    mkdir -p "$shares"
    local suffixes='jpe?g|jpe|jfif|png|webp|tiff?|bmp|gif|avif|jp2|hei[cf]|hif|dng|cr[23]|nef|arw|raf|orf|rw2|pef|srw'
    find -L "$photos" -type f -regextype egrep -iregex ".*\.($suffixes)" -printf '%P\n' |
        LC_ALL=C sort >"$shares/all.tmp"
    split --number="r/$1" --numeric-suffixes --suffix-length=5 --additional-suffix=.txt \
        "$shares/all.tmp" "$shares/share-"
    mv "$shares/all.tmp" "$shares/all"
}

build_share() {
    local share
    share=$shares/share-$(printf %05d "$1")
    shift
    [ -s "$share.txt" ] || exit 0 # fewer photographs than shares
    # Prefect's database must not be in a home folder that several machines write to.
    PREFECT_HOME=$(mktemp --directory)
    export PREFECT_HOME
    trap 'rm -rf "$PREFECT_HOME"' EXIT
    cd "$photos" # names are relative to the current folder
    lasr build --images "$share.txt" --out "$share.parquet" "$@"
}

combine() { # parts are named by their content, so those of all shares can be in one work folder
    mkdir -p "$name.work"
    find "$shares" -path '*.work/part-*.parquet' -print0 |
        xargs --null --no-run-if-empty cp --link --no-clobber --target-directory="$name.work"
    exec lasr build --images "$photos" --out "$out" "$@"
}

case $step in
cut) cut_list "$@" ;;
build) build_share "$@" ;;
combine) combine "$@" ;;
*) echo "shares.sh: unknown step $step (cut, build, combine)" >&2 && exit 2 ;;
esac
