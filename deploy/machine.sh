# What a machine must be and have for Selvedge to be built and tried on it. Sourced by `try` and
# `check`; installs Debian packages by name and nothing else.

# Programs that the build, the demo and the tests run, as Debian packages.
PACKAGES=(
    ca-certificates gcc libc6-dev libseccomp-dev pkg-config
    bind9-dnsutils busybox-static curl iproute2 iputils-ping jq nftables procps util-linux
    docker-registry mmdebstrap openssl pebble skopeo umoci
    # What the front door is compared with, and what speaks to it as a load balancer does.
    haproxy nginx-light ngtcp2-client python3-grpcio python3-h2 python3-websockets
    # What faults are made with, what announces the tests' nodes, and what keeps their daemons.
    bird2 conntrack e2fsprogs libfaketime mount strace systemd
)

say() { printf '== %s\n' "$*" >&2; }

# One line about what is missing, and the exit code of wrong usage.
refuse() {
    printf 'selvedge: %s\n' "$*" >&2
    exit 2
}

require_debian() {
    [[ "$(uname -s)" == Linux ]] || refuse "this needs Linux; here is $(uname -s)"
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
        refuse "this needs Debian 12 or a relative: there is no apt-get here"
}

require_root() {
    [[ "$(id -u)" == 0 ]] ||
        refuse "this makes network namespaces and containers: run it as root (sudo $0)"
}

require_rust() {
    local wanted have
    wanted="$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)"
    command -v cargo >/dev/null && command -v rustc >/dev/null ||
        refuse "there is no Rust toolchain in root's PATH: install Rust $wanted or newer" \
            "(with rustup, or run: sudo env \"PATH=\$PATH\" $0)"
    have="$(rustc --version | cut -d ' ' -f 2)"
    [[ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" == "$wanted" ]] ||
        refuse "Rust $wanted or newer is needed; this is $have"
}

require_machine() {
    require_debian
    require_root
    require_rust
    install_packages
}

missing_packages() {
    local package
    for package in "${PACKAGES[@]}"; do
        [[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] ||
            printf '%s\n' "$package"
    done
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]} > 0)) || return 0
    say "installing ${missing[*]}"
    without_starting_services quietly apt-get update
    without_starting_services quietly apt-get install -y --no-install-recommends "${missing[@]}" ||
        refuse "apt-get could not install: ${missing[*]}"
    # The demo and the tests run their own on their own hosts; the machine gets no service from us.
    disable_new docker-registry docker-registry
    disable_new bird2 bird
}

# Disables a package's service if the package was just installed.
disable_new() {
    [[ " ${missing[*]} " == *" $1 "* ]] && command -v systemctl >/dev/null || return 0
    systemctl disable "$2" >/dev/null 2>&1 || true
}

# Runs a command while packages may not start services at their installation.
without_starting_services() {
    local policy=/usr/sbin/policy-rc.d code=0
    if [[ -e "$policy" ]]; then
        "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    "$@" || code=$?
    rm -f "$policy"
    return "$code"
}

# Runs a command and shows what it said only when it fails.
quietly() {
    local said code=0
    said="$(DEBIAN_FRONTEND=noninteractive "$@" 2>&1)" || code=$?
    ((code == 0)) || printf '%s\n' "$said" >&2
    return "$code"
}

# Where cargo puts what it builds.
target_dir() {
    cargo metadata --locked --format-version 1 --no-deps | jq -r .target_directory
}
