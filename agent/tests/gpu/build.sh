#!/bin/sh
# Builds the stand-in runtime and the workload into a folder: libcudart.so.12 and workload, which needs it, and
# workload-static, which has it within.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
flags="-O1 -g0 -fcf-protection -fno-omit-frame-pointer -Wall -Wextra -Werror -pthread"
cd "$1"
cc $flags -fPIC -shared -Wl,-soname,libcudart.so.12 -o libcudart.so.12 "$here/cudart.c"
cc $flags -o workload "$here/workload.c" -L. -l:libcudart.so.12 -Wl,-rpath,'$ORIGIN'
cc $flags -static -o workload-static "$here/workload.c" "$here/cudart.c"
