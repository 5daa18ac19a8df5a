# Shared by the scripts in this folder: steps with their wall time, skips with their reason.
# Source it; it defines functions and changes nothing.

step_names=()
step_seconds=()
skipped=()

# step NAME COMMAND...: runs the command, notes how long it took, stops the script when it fails.
step() {
    local name=$1 start=$SECONDS
    shift
    printf '\n=== %s\n' "$name"
    current=$name
    "$@"
    current=
    step_names+=("$name")
    step_seconds+=($((SECONDS - start)))
}

# skip NAME REASON
skip() {
    printf '\n=== %s: skipped, %s\n' "$1" "$2"
    skipped+=("$1: $2")
}

# Prints the table of steps; $1 is the script's exit status.
summary() {
    local i
    printf '\n--- seconds  step\n'
    for i in "${!step_names[@]}"; do
        printf '%11d  %s\n' "${step_seconds[i]}" "${step_names[i]}"
    done
    printf '%11d  in total\n' "$SECONDS"
    if [ "${#skipped[@]}" -eq 0 ]; then
        echo 'skipped: nothing'
    else
        printf 'skipped: %s\n' "${skipped[@]}"
    fi
    if [ "$1" -eq 0 ]; then
        echo 'all steps passed'
    else
        echo "FAILED in step: ${current:-preparation} (status $1)"
    fi
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# apt_install PACKAGE...: one attempt, as root or through sudo without a password.
apt_install() {
    local as=()
    have apt-get || return 1
    if [ "$(id -u)" -ne 0 ]; then
        have sudo && sudo -n true 2>/dev/null || return 1
        as=(sudo -n)
    fi
    if [ -z "${apt_updated:-}" ]; then
        "${as[@]}" apt-get update -qq || return 1
        apt_updated=1
    fi
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" </dev/null
}

# need_tool COMMAND PACKAGE...: has the command, installing the packages when it is missing.
need_tool() {
    local tool=$1
    shift
    have "$tool" || { apt_install "$@" && have "$tool"; }
}

# need_target TRIPLE [TOOLCHAIN]
need_target() {
    local toolchain=("${@:2}")
    rustup target list --installed ${toolchain[0]:+--toolchain "${toolchain[0]}"} | grep -qx "$1" ||
        rustup target add "$1" ${toolchain[0]:+--toolchain "${toolchain[0]}"}
}

# need_component NAME TOOLCHAIN
need_component() {
    rustup component list --installed --toolchain "$2" | grep -q "^$1\(-\|$\)" ||
        rustup component add "$1" --toolchain "$2"
}
