# SPDX-License-Identifier: Apache-2.0
#
# `./just` works on a machine without `just`. Every recipe runs in the toolbox (tests/toolbox/enter).

set shell := ["tests/toolbox/enter", "bash", "-euo", "pipefail", "-c"]
set positional-arguments := true

# What `vm-cluster` tells people to type.
export CLUSTER_OS_JUST := "./just"

version := trim(read("mkosi.version"))
image := justfile_directory() / "build/image/cluster-os_" + version + ".raw"
vm := '"$CARGO_TARGET_DIR/debug/vm-cluster"'

# List the recipes
default:
    @just --list --unsorted

# Check tools, memory, disk and KVM of this machine, with a fix for each
[group('start here')]
doctor:
    #!/usr/bin/env bash
    exec tests/toolbox/doctor

# Build the image and start N VMs (3) that form a cluster; CLUSTER=name for a second one
[group('start here')]
[no-exit-message]
vm-cluster *args: _image
    @{{vm}} up --image "{{image}}" "$@"

# Download everything once; builds then need no network
[group('start here')]
deps:
    @tests/toolbox/fetch

# Table of the VMs and members ([--json])
[group('vm')]
[no-exit-message]
vm-status *args:
    @{{vm}} status "$@"

# Paths, ports, acceleration and image of the cluster
[group('vm')]
[no-exit-message]
vm-info *args:
    @{{vm}} info "$@"

# Shell in VM N, or one command and its exit status
[group('vm')]
[no-exit-message]
vm-shell *args:
    @{{vm}} shell "$@"

# Copy between host and VM: vm-cp FILE N:/path, vm-cp N:/path FILE
[group('vm')]
[no-exit-message]
vm-cp *args:
    @{{vm}} cp "$@"

# Journal of VM N; -f follows, --serial shows the console
[group('vm')]
[no-exit-message]
vm-logs *args:
    @{{vm}} logs "$@"

# Start VM N
[group('vm')]
[no-exit-message]
vm-start *args:
    @{{vm}} start "$@"

# Shut down VM N, or all
[group('vm')]
[no-exit-message]
vm-stop *args:
    @{{vm}} stop "$@"

# Cut the power of VM N
[group('vm')]
[no-exit-message]
vm-kill *args:
    @{{vm}} kill "$@"

# One more VM ([CLUSTER_TOML]; default: the same cluster's)
[group('vm')]
[no-exit-message]
vm-add *args:
    @{{vm}} add "$@"

# Change the network link of VM N, or of its card C: vm-link N[.C] off|on|loss=5%|delay=50ms|port-delay=60s
[group('vm')]
[no-exit-message]
vm-link *args:
    @{{vm}} link "$@"

# Split the switch: vm-partition 1,2/3
[group('vm')]
[no-exit-message]
vm-partition *args:
    @{{vm}} partition "$@"

# Undo vm-link and vm-partition
[group('vm')]
[no-exit-message]
vm-heal *args:
    @{{vm}} heal "$@"

# Record every frame on the switch: vm-capture FILE [SECONDS]
[group('vm')]
[no-exit-message]
vm-capture *args:
    @{{vm}} capture "$@"

# Snapshot all VMs and the switch together
[group('vm')]
[no-exit-message]
vm-snapshot *args:
    @{{vm}} snapshot "$@"

# Restore the snapshot
[group('vm')]
[no-exit-message]
vm-restore *args:
    @{{vm}} restore "$@"

# Stop everything and delete the VMs' disks
[group('vm')]
[no-exit-message]
vm-clean *args:
    @{{vm}} clean "$@"

# Start N daemons (3) in network namespaces, without VMs
[group('develop')]
[no-exit-message]
netns-cluster *args:
    @tests/netns/netns-cluster "$@"

# Build programs and image
[group('build')]
build: _image

# Build the raw image (FIRMWARE=no leaves out firmware and microcode)
[group('build')]
image: _image
    @echo "{{image}}"

# Write image and cluster.toml to a stick: usb DEVICE [CLUSTER_TOML | --new NAME --ssh-key FILE]; asks first
[group('build')]
[no-cd]
usb *args:
    #!/usr/bin/env bash
    exec "{{justfile_directory()}}/tests/toolbox/usb" "$@"

# Build the image as qcow2
[group('build')]
image-qcow2: _image
    @qemu-img convert -f raw -O qcow2 "{{image}}" "{{without_extension(image)}}.qcow2"
    @echo "{{without_extension(image)}}.qcow2"

# Record the packages of the last build in mkosi.lock
[group('build')]
lock: _image
    @tests/toolbox/lock write

# Build the image twice and compare every byte
[group('build')]
image-repro:
    @tests/toolbox/image-repro

# Files to publish, in build/release/: image, update, tools for a PC, checksums; --key FILE signs (else: development)
[group('build')]
release *args: _image
    @tests/toolbox/release "$@"

_image:
    @tests/toolbox/build-image >/dev/null

# Formats, clippy, unit and core tests (≤ 5 minutes warm)
[group('develop')]
check: lint
    cargo test --quiet --locked --workspace --exclude cluster-e2e

# Formats, clippy, shellcheck, links
[group('develop')]
lint:
    cargo fmt --all --check
    cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
    tests/toolbox/lint-scripts

# Format the sources
[group('develop')]
fmt:
    cargo fmt --all

# What CI runs: check, image, namespaces, VM stories
[group('develop')]
test:
    @tests/toolbox/test

# Run the VM stories whose name contains NAME: e2e [NAME]
[group('develop')]
e2e *args: _image
    @CLUSTER_OS_IMAGE="{{image}}" cargo test --quiet --locked --workspace --test vm -- "$@"

# Measure: bench formation (simulated), bench members [--nodes N] (real agents beside serf), bench update (beside casync, bita, zstd)
[group('develop')]
bench *args:
    @tests/toolbox/bench "$@"

# Long runs with a report in docs/reports/: campaign sim|fuzz|vm|media|update|powercut|network|net
[group('develop')]
campaign *args:
    @tests/toolbox/campaign "$@"

# Delete build/ (not the VMs: vm-clean; not the cache in ~/.cache/cluster-os)
[group('develop')]
clean:
    rm -rf build mkosi.local.conf
