// SPDX-License-Identifier: Apache-2.0
//! The agent runs under a user of its own: it has what mesh and clock need, and no way to more.

use anyhow::{Result, ensure};
use cluster_e2e::{Formed, World, note};
use cluster_harness::client::{Seen, Vm};
use cluster_harness::timeouts;

/// `CAP_NET_ADMIN` and `CAP_SYS_TIME`, as /proc/PID/status shows sets of capabilities (capabilities(7)).
const CAPABILITIES: &str = "0000000002001000";
/// Whatever a taken-over agent can do, this can: the same user, the same capabilities.
const AS_AGENT: &str = "setpriv --reuid cluster-agent --regid cluster-agent --clear-groups --inh-caps=-all,+net_admin,+sys_time \
     --ambient-caps=-all,+net_admin,+sys_time --bounding-set=-all,+net_admin,+sys_time --no-new-privs";
/// Calls on the system bus by which somebody becomes root, renames or switches off a machine.
const CALLS: &[&str] = &[
    "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StartTransientUnit 'ssa(sv)a(sa(sv))' \
     taken.service replace 1 ExecStart 'a(sasb)' 1 /bin/touch 2 /bin/touch /run/taken false 0",
    "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StartUnit ss ssh.service replace",
    "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager SetEnvironment as 1 LD_PRELOAD=/x",
    "org.freedesktop.hostname1 /org/freedesktop/hostname1 org.freedesktop.hostname1 SetHostname sb taken false",
    "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager PowerOff b false",
    "org.freedesktop.network1 /org/freedesktop/network1 org.freedesktop.network1.Manager Reload",
    "org.freedesktop.resolve1 /org/freedesktop/resolve1 org.freedesktop.resolve1.Manager FlushCaches",
    "org.freedesktop.timedate1 /org/freedesktop/timedate1 org.freedesktop.timedate1 SetTime xbb 0 false false",
    "org.clusteros.Agent1 /org/clusteros/Agent1 org.clusteros.Agent1 Leave",
    "org.clusteros.Updater1 /org/clusteros/Updater1 org.clusteros.Updater1 Rollback",
];

pub(crate) fn the_agent_is_nobody_special(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    let vm = cluster.vm(1);
    let process = vm.sh(
        "pid=$(systemctl show -P MainPID cluster-agent); stat -c %U:%G /proc/$pid; \
         sed -n 's/^Cap[EPBA][a-z]*:\\s*//p; s/^NoNewPrivs:\\s*//p' /proc/$pid/status | sort -u | paste -sd' '",
    )?;
    ensure!(
        process == format!("cluster-agent:cluster-agent\n{CAPABILITIES} 1\n"),
        "the agent runs as {process}"
    );
    note("it runs as cluster-agent, with CAP_NET_ADMIN and CAP_SYS_TIME");

    let own = cluster.members[&1].name.clone();
    ensure!(vm.sh("uname -n")?.trim() == own, "the machine is called {}, not {own}", vm.sh("uname -n")?);
    let interface = vm.sh("ip -br link show cluster0; wg show cluster0 peers")?;
    ensure!(interface.lines().count() == 3, "the mesh: {interface}");
    // What it showed was before this cluster was saved.
    vm.sh("systemctl restart cluster-console@ttyS0")?;
    vm.wait_console(&own)?;
    note("mesh, host name and console are there without root");

    for call in CALLS {
        let answer = vm.try_sh(&format!("{AS_AGENT} busctl --system call {call}"))?;
        ensure!(answer.status != 0, "the agent may call {call}: {}", answer.all());
        ensure!(answer.all().contains("Access denied"), "{call} ended with: {}", answer.all());
    }
    vm.sh("test ! -e /run/taken")?;
    // What any other user may ask of systemd shows that it is the bus that refuses, whatever a service would have said.
    let units = "busctl --system call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager ListUnits";
    vm.sh(&format!("setpriv --reuid nobody --clear-groups {units} >/dev/null"))?;
    ensure!(vm.try_sh(&format!("{AS_AGENT} {units}"))?.status != 0, "the bus lets the agent talk to systemd");
    note(&format!(
        "{} calls that would make it more were refused, and the bus lets it call nobody",
        CALLS.len()
    ));

    for line in [
        "cat /etc/shadow",
        "cat /var/lib/clusteros/ssh/ssh_host_ed25519_key",
        "touch /run/clusteros/authorized_keys",
        "touch /etc/systemd/system/taken.service",
        "touch /run/systemd/system/taken.service",
        "systemctl start ssh.service",
        "cat /dev/disk/cluster-os/root",
        "unshare --user true",
        "nsenter --target 1 --all true",
    ] {
        let output = vm.try_sh(&format!("{AS_AGENT} bash -c '{line}'"))?;
        ensure!(output.status != 0, "`{line}` worked: {}", output.all());
    }
    note("it reads and writes nothing of root's, the keys for SSH included");

    let reads = vm.sh("setpriv --reuid nobody --clear-groups clusterctl nodes --json")?;
    ensure!(reads.contains(&own), "anybody may read: {reads}");
    let change = vm.try_sh("setpriv --reuid nobody --clear-groups clusterctl leave --yes")?;
    ensure!(change.status == 5, "nobody may change: status {}, {}", change.status, change.all());
    vm.sh("systemctl reload cluster-agent")?;
    note("on its own interface anybody reads and only root changes; `systemctl reload` works");

    takes_over_what_was_roots(cluster, vm)?;
    an_odd_host_name_is_refused(cluster, vm, &own)
}

/// A `/var` of a version whose agent was root.
fn takes_over_what_was_roots(cluster: &Formed, vm: Vm<'_>) -> Result<()> {
    vm.sh("systemctl stop cluster-agent && chown -R root:root /var/lib/clusteros/agent && systemctl start cluster-agent")?;
    vm.sh("test -z \"$(find /var/lib/clusteros/agent ! -user cluster-agent)\"")?;
    let own = cluster_e2e::wait_all_up(vm, cluster.members.len())?;
    let before = &cluster.members[&vm.number()];
    ensure!(own.id == before.id, "it was {before:?}, and is {own:?}");
    note("state that belonged to root is taken over: the same node, all up");
    Ok(())
}

/// A taken-over agent may write what it likes where it asks for a name.
fn an_odd_host_name_is_refused(cluster: &Formed, vm: Vm<'_>, own: &str) -> Result<()> {
    vm.sh("echo '-x; reboot' >/run/clusteros/agent/hostname")?;
    let ended = |wanted: &str| {
        cluster.wait_for(&format!("cluster-hostname.service to end as {wanted}"), timeouts::COMMAND, || {
            let state = vm.sh("systemctl show -P Result cluster-hostname.service; uname -n")?;
            let as_wanted = state.trim() == format!("{wanted}\n{own}");
            Ok(if as_wanted { Seen::Found(()) } else { Seen::NotYet(state) })
        })
    };
    ended("exit-code")?;
    vm.sh("systemctl restart cluster-agent")?;
    ended("success")?;
    note("a host name that is none is refused");
    Ok(())
}
