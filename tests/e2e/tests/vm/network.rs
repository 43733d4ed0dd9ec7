// SPDX-License-Identifier: Apache-2.0
//! The network is not what one wants it to be: one of two cables is pulled, and after a power cut the switch is later than
//! the machines. There is no DHCP and no router on the switch of these VMs, ever.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cluster_e2e::{Alone, World, note, wait_all_up};
use cluster_harness::client::{Seen, Vm};
use cluster_harness::protocol::{LinkChange, Request};
use cluster_harness::state::Shape;
use cluster_harness::switch::Direction;
use cluster_harness::timeouts;

/// Port of the stream, on the mesh.
const PORT: u16 = 7000;
/// What the receiver saw: a time and a number a line.
const LOG: &str = "/run/stream.log";
/// The sender goes on while it exists.
const GO: &str = "/run/stream.on";
/// How late the switch is.
const LATE: Duration = Duration::from_secs(60);
/// Ports with this delay stay closed for the whole story unless they are opened.
const NEVER_MS: u64 = 24 * 3600 * 1000;

pub(crate) fn a_pulled_cable_stops_nothing_on_one_lan(world: &mut World) -> Result<()> {
    a_pulled_cable_stops_nothing(world, vec![1, 1])
}

pub(crate) fn a_pulled_cable_stops_nothing_on_two_lans(world: &mut World) -> Result<()> {
    a_pulled_cable_stops_nothing(world, vec![1, 2])
}

fn a_pulled_cable_stops_nothing(world: &mut World, lans: Vec<u8>) -> Result<()> {
    let lab = world.lab(2, Shape { lans, ..Shape::default() })?;
    for vm in lab.vms()? {
        vm.wait_boot()?;
    }
    let (from, to) = (lab.vm(), lab.nth(2));
    wait_all_up(from, 2)?;
    let receiver = wait_all_up(to, 2)?;
    for vm in [from, to] {
        both_cards_ready(lab, vm)?;
    }
    mesh_carries(lab, from, &receiver.address)?;
    let stream = Stream::start(lab, from, to, &receiver.address)?;
    let allowed = lab.speed()?.limit(timeouts::GAP);

    for (vm, nic) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let cable = |change| {
            lab.request(&Request::Link { vm, nic: Some(nic), direction: Direction::Both, change }).map(drop)
        };
        cable(LinkChange::Off)?;
        // So long that a stream which does not go on shows a longer gap than is allowed.
        let pulled = Instant::now();
        while pulled.elapsed() < allowed + allowed / 4 {
            sleep(Duration::from_secs(1));
        }
        let gap = stream.longest_gap()?;
        ensure!(
            gap <= allowed,
            "cable {nic} of VM {vm} pulled: the stream stood still for {:.1} s, {:.1} s are allowed",
            gap.as_secs_f64(),
            allowed.as_secs_f64()
        );
        note(&format!("cable {nic} of VM {vm} pulled: longest gap so far {:.1} s", gap.as_secs_f64()));
        cable(LinkChange::On)?;
        both_cards_ready(lab, lab.nth(vm))?;
        stream.wait_for_more(100)?;
    }
    let lines = stream.end()?;
    note(&format!(
        "{lines} lines went through, in order, none lost; {:.1} s are allowed",
        allowed.as_secs_f64()
    ));
    for vm in lab.vms()? {
        wait_all_up(vm, 2)?;
    }
    Ok(())
}

/// Lab power comes back: the machines are up a minute before the switch passes anything. They wait, found nothing, and are
/// the cluster they were as soon as it does.
pub(crate) fn power_is_back_before_the_switch(world: &mut World) -> Result<()> {
    let cluster = world.formed()?;
    let before = cluster.vm(1).cluster_status()?["cluster_id"].clone();
    ensure!(before.is_string(), "VM 1 shows no cluster id");
    let ports = |after| -> Result<()> {
        for vm in cluster.vms() {
            let change = LinkChange::OpensAfterMs(after);
            let (vm, nic, direction) = (vm.number(), None, Direction::Both);
            cluster.request(&Request::Link { vm, nic, direction, change })?;
        }
        Ok(())
    };
    for vm in cluster.vms() {
        vm.kill()?;
    }
    ports(NEVER_MS)?;
    for vm in cluster.vms() {
        vm.start()?;
    }
    for vm in cluster.vms() {
        vm.wait_boot()?;
    }
    let up = Instant::now();
    let mut looks = 0;
    while up.elapsed() < LATE {
        for vm in cluster.vms() {
            // The agent may be starting still; once it answers, it must not be in another cluster.
            if let Ok(status) = vm.cluster_status() {
                let id = &status["cluster_id"];
                ensure!(id.is_null() || *id == before, "VM {} is in cluster {id}, not {before}", vm.number());
                looks += 1;
            }
        }
        sleep(Duration::from_secs(1));
    }
    ensure!(looks > 0, "no agent answered while the switch was closed");
    let carriers = cluster.vm(1).sh("cat /sys/class/net/e*/carrier")?;
    ensure!(carriers.trim() == "1", "the carrier is not there: {carriers}");
    note(&format!("{} s with carrier and without a frame: no agent is in another cluster", LATE.as_secs()));

    ports(0)?;
    for vm in cluster.vms() {
        let own = wait_all_up(vm, 3)?;
        let known = &cluster.members[&vm.number()];
        ensure!((&own.id, &own.address) == (&known.id, &known.address), "{known:?} came back as {own:?}");
        let status = vm.cluster_status()?;
        ensure!(status["cluster_id"] == before, "VM {} is in {status}", vm.number());
        let founded =
            vm.sh("journalctl -b -u cluster-agent --no-pager -o cat | grep -c 'founded a cluster' || true")?;
        ensure!(founded.trim() == "0", "VM {} founded a cluster after the power cut", vm.number());
    }
    note("the three are the same three, in the same cluster, and nothing was founded");
    Ok(())
}

/// Both cards have a carrier and a link-local address that has passed duplicate detection.
fn both_cards_ready(lab: &Alone, vm: Vm<'_>) -> Result<()> {
    lab.wait_for(&format!("both cards of VM {} to be ready", vm.number()), timeouts::COMMAND, || {
        let shown = vm.sh("ip -br link show up; ip -6 -o address show scope link -tentative")?;
        let addresses =
            shown.lines().filter(|line| line.contains(" fe80:") && !line.contains("cluster0")).count();
        Ok(if addresses == 2 { Seen::Found(()) } else { Seen::NotYet(shown) })
    })
}

/// A member is up as soon as gossip says so; its mesh address and the tunnel to it come a moment later.
fn mesh_carries(lab: &Alone, from: Vm<'_>, address: &str) -> Result<()> {
    lab.wait_for("the mesh to carry a ping", timeouts::COMMAND, || {
        let shown = from.sh(&format!("ping -c 1 -W 1 {address} 2>&1 || true"))?;
        Ok(if shown.contains(" 1 received") { Seen::Found(()) } else { Seen::NotYet(shown) })
    })
}

/// A TCP connection through the mesh with ten lines a second.
struct Stream<'a> {
    lab: &'a Alone,
    from: Vm<'a>,
    to: Vm<'a>,
}

impl<'a> Stream<'a> {
    fn start(lab: &'a Alone, from: Vm<'a>, to: Vm<'a>, address: &str) -> Result<Self> {
        let receive = format!("while read -r line; do echo \"$EPOCHREALTIME $line\"; done >>{LOG}");
        let listen = format!("[{address}]:{PORT}");
        let receiver = to.spawn(
            &["systemd-socket-activate", "-l", &listen, "--accept", "--inetd", "bash", "-c", &receive],
            None,
        )?;
        lab.wait_for("the receiver to listen", timeouts::COMMAND, || {
            if let Some(ended) = receiver.ended()? {
                bail!("the receiver ended: {}", ended.all().trim());
            }
            let sockets = to.sh("ss -Hltn")?;
            Ok(if sockets.contains(&format!(":{PORT}")) { Seen::Found(()) } else { Seen::NotYet(sockets) })
        })?;
        from.sh(&format!("touch {GO}"))?;
        let send = format!(
            "exec 3<>/dev/tcp/{address}/{PORT} && n=0 && while [ -e {GO} ]; do echo $n >&3; n=$((n + 1)); sleep 0.1; done"
        );
        from.spawn(&["bash", "-c", &send], None)?;
        let stream = Self { lab, from, to };
        stream.wait_for_more(50)?;
        Ok(stream)
    }

    /// When each line came, and the time now, on the receiver's clock; lines must be numbered without a hole.
    fn lines(&self) -> Result<(Vec<f64>, f64)> {
        let text = self.to.sh(&format!("cat {LOG}; echo $EPOCHREALTIME"))?;
        let mut times = Vec::new();
        let mut now = None;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let time: f64 =
                words.next().unwrap_or_default().parse().with_context(|| format!("odd line {line}"))?;
            match words.next() {
                Some(number) => {
                    ensure!(
                        number == times.len().to_string(),
                        "line {number} came as number {}",
                        times.len()
                    );
                    times.push(time);
                }
                None => now = Some(time),
            }
        }
        Ok((times, now.context("no time")?))
    }

    /// Between two lines, or since the last one.
    fn longest_gap(&self) -> Result<Duration> {
        let (times, now) = self.lines()?;
        let ends = times.iter().skip(1).chain([&now]);
        let gap = times.iter().zip(ends).map(|(start, end)| end - start).fold(0.0, f64::max);
        if times.is_empty() {
            bail!("nothing came through");
        }
        Ok(Duration::from_secs_f64(gap))
    }

    fn wait_for_more(&self, lines: usize) -> Result<()> {
        let count = || Ok::<_, anyhow::Error>(self.lines()?.0.len());
        let before = if self.to.try_sh(&format!("test -e {LOG}"))?.status == 0 { count()? } else { 0 };
        self.lab.wait_for(&format!("{lines} more lines of the stream"), timeouts::COMMAND, || {
            if self.to.try_sh(&format!("test -e {LOG}"))?.status != 0 {
                return Ok(Seen::NotYet("no connection".to_owned()));
            }
            let now = count()?;
            Ok(if now >= before + lines {
                Seen::Found(())
            } else {
                Seen::NotYet(format!("{}", now - before))
            })
        })
    }

    /// Stops the sender; returns how many lines came.
    fn end(&self) -> Result<usize> {
        self.from.sh(&format!("rm {GO}"))?;
        Ok(self.lines()?.0.len())
    }
}
