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

# Check what this machine has: tools, memory, disk, KVM; says how to mend it
[group('start here')]
doctor:
    #!/usr/bin/env bash
    exec tests/toolbox/doctor

# Build the image and start N VMs (3) that become one cluster; CLUSTER=name keeps several apart
[group('start here')]
[no-exit-message]
vm-cluster *args: _image
    @{{vm}} up --image "{{image}}" "$@"

# Fetch everything once; building needs no network afterwards
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

# Shell in VM N, or run a command there (its exit status is the command's)
[group('vm')]
[no-exit-message]
vm-shell *args:
    @{{vm}} shell "$@"

# Copy between host and VM: vm-cp FILE N:/path, vm-cp N:/path FILE
[group('vm')]
[no-exit-message]
vm-cp *args:
    @{{vm}} cp "$@"

# Journal of VM N ([-f] follows, [--serial] the console)
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

# Change VM N's network link, or card C's: vm-link N[.C] off|on|loss=5%|delay=50ms|port-delay=60s
[group('vm')]
[no-exit-message]
vm-link *args:
    @{{vm}} link "$@"

# Cut the switch in parts: vm-partition 1,2/3
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

# Go back to the snapshot
[group('vm')]
[no-exit-message]
vm-restore *args:
    @{{vm}} restore "$@"

# Stop everything and delete the VMs' disks
[group('vm')]
[no-exit-message]
vm-clean *args:
    @{{vm}} clean "$@"

# N real daemons (3) in network namespaces on this machine: the fast loop for the agent
[group('develop')]
[no-exit-message]
netns-cluster *args:
    @tests/netns/netns-cluster "$@"

# Programs and image
[group('build')]
build: _image

# The raw image (FIRMWARE=no leaves out firmware and microcode)
[group('build')]
image: _image
    @echo "{{image}}"

# Write the image to a stick, then cluster.toml: usb DEVICE [CLUSTER_TOML]; asks before
[group('build')]
[no-cd]
usb *args:
    #!/usr/bin/env bash
    exec "{{justfile_directory()}}/tests/toolbox/usb" "$@"

# The image as qcow2
[group('build')]
image-qcow2: _image
    @qemu-img convert -f raw -O qcow2 "{{image}}" "{{without_extension(image)}}.qcow2"
    @echo "{{without_extension(image)}}.qcow2"

# Take the packages of the last build over into mkosi.lock
[group('build')]
lock: _image
    @tests/toolbox/lock write

# Build the image twice and compare every byte
[group('build')]
image-repro:
    @tests/toolbox/image-repro

# What one publishes, in build/release/
[group('build')]
release: _image
    @tests/toolbox/release

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

# Rewrite sources in the project's format
[group('develop')]
fmt:
    cargo fmt --all

# What CI runs: check, image, namespaces, VM stories
[group('develop')]
test:
    @tests/toolbox/test

# One VM story by name, or a part of it
[group('develop')]
e2e *args: _image
    @CLUSTER_OS_IMAGE="{{image}}" cargo test --quiet --locked --workspace --test vm -- "$@"

# Figures: bench formation (simulated), bench members [--nodes N] (real agents beside serf)
[group('develop')]
bench *args:
    @tests/toolbox/bench "$@"

# Long runs with a report in docs/reports/: campaign sim|fuzz|vm|media|network|net
[group('develop')]
campaign *args:
    @tests/toolbox/campaign "$@"

# Delete build/ (caches stay: vm-clean, and rm -r the cache that `just doctor` names)
[group('develop')]
clean:
    rm -rf build mkosi.local.conf
