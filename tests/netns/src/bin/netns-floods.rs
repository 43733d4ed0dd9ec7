// SPDX-License-Identifier: Apache-2.0
//! `netns-floods`: what somebody on the LAN without any key can send in masses, against real daemons in network namespaces:
//! garbage from spoofed addresses, and connections on which nothing is said. Meanwhile a member restarts and a new node comes.
//! Runs in CI. The same program, called with `send`, is what sends; it runs in a namespace of the world that the story made.

use std::{
    fs,
    io::{self, IoSlice, Read as _},
    net::{Ipv6Addr, SocketAddrV6, TcpStream},
    os::fd::AsRawFd as _,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use cluster_netns::{
    Node, World,
    story::{Report, no_errors, tell},
};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn6, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

/// Forming, before the flood.
const FORM_LIMIT: Duration = Duration::from_secs(60);
/// A restarted member is back and a new node is in, while the flood lasts.
const BACK_LIMIT: Duration = Duration::from_secs(20);
/// The flood ends with the story; by itself after so long.
const FLOOD: u64 = 60;
/// Datagrams a second to all that are there, and from how many addresses.
const OPENS: u32 = 20_000;
const BEACONS: u32 = 2_000;
const ADDRESSES: u32 = 30_000;
/// What an agent may hold, in KiB, whatever is sent.
const MOST_MEMORY: u64 = 96 * 1024;
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Port of the agent and group of its beacons.
const PORT: u16 = 41410;
const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0x6343, 0x6c75, 0x7374);

type Story = fn(&World, &mut Report) -> Result<()>;

const STORIES: [(&str, Story); 4] = [
    // To compare with.
    ("calm", |world, report| flooded(world, report, "nothing", 0)),
    ("garbage", |world, report| flooded(world, report, "garbage", ADDRESSES)),
    ("half-open-20", |world, report| flooded(world, report, "half-open", 20)),
    ("half-open-200", |world, report| flooded(world, report, "half-open", 200)),
];

/// Tells stories of floods.
#[derive(Parser)]
#[command(name = "netns-floods", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    send: Option<Send>,
    /// Only these.
    #[arg(value_parser = STORIES.map(|(name, _)| name))]
    stories: Vec<String>,
}

#[derive(Subcommand)]
enum Send {
    /// Sends, in a namespace of a story.
    #[command(hide = true)]
    Send {
        what: String,
        seconds: u64,
        addresses: u32,
        /// Index of the interface.
        interface: u32,
        targets: Vec<Ipv6Addr>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Send::Send { what, seconds, addresses, interface, targets }) = arguments.send {
        let end = Instant::now() + Duration::from_secs(seconds);
        let sent = match &*what {
            "nothing" => {
                sleep(end - Instant::now());
                Ok(0)
            }
            "garbage" => garbage(end, addresses, interface, &targets),
            _ => half_open(end, addresses, interface, &targets),
        };
        return match sent {
            Ok(count) => {
                println!("{count}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("netns-floods: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let mut report = Report::default();
    for (name, story) in STORIES {
        if !arguments.stories.is_empty() && !arguments.stories.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("story {name}");
        report = match tell(name, report, story) {
            Ok(report) => report,
            Err(error) => {
                eprintln!("netns-floods: {name}: {error:#}");
                return ExitCode::FAILURE;
            }
        };
    }
    report.finish()
}

/// Three members; while the flood lasts one of them restarts and a new node comes.
fn flooded(world: &World, report: &mut Report, what: &str, addresses: u32) -> Result<()> {
    let toml = world.fresh_cluster_toml()?;
    let mut nodes: Vec<Node> = (0..3).map(|_| world.add(Some(&toml))).collect::<Result<_>>()?;
    report.check("three nodes become one cluster", || up(&nodes, &nodes, FORM_LIMIT).map(drop));
    let cluster = cluster_of(&nodes[0])?;
    let (new, attacker) = (world.hang(Some(&toml))?, world.hang(None)?);
    nodes.push(new.clone());
    let targets: Vec<String> = nodes.iter().map(link_local).collect::<Result<_>>()?;
    let (seconds, addresses, interface) =
        (FLOOD.to_string(), addresses.to_string(), interface_of(&attacker)?.to_string());
    let program = std::env::current_exe()?;
    let program = program.to_str().context("this program's path is not UTF-8")?;
    let mut command = vec![program, "send", what, &seconds, &addresses, &interface];
    command.extend(targets.iter().map(String::as_str));
    attacker.start_other("flood", &command)?;
    let began = Instant::now();
    // Tables are full, and buckets empty, before anybody comes.
    sleep(Duration::from_secs(4));
    let before = Usage::of(&nodes[0])?;
    nodes[2].kill()?;
    nodes[2].start()?;
    new.start()?;
    let switched_on = Instant::now();
    report.check("the member that restarted is back, and the new node is in, during the flood", || {
        let took = up(&nodes, &nodes[..3], BACK_LIMIT).map(|at| at - switched_on)?;
        println!("      the member is back after {:.1} s", took.as_secs_f64());
        let took = up(&nodes, &nodes, BACK_LIMIT).map(|at| at - switched_on)?;
        println!("      the new node is in after {:.1} s", took.as_secs_f64());
        ensure!(took <= BACK_LIMIT, "that took more than {} s", BACK_LIMIT.as_secs());
        Ok(())
    });
    report.check("nobody founded another cluster or moved to one, and nobody was declared down", || {
        for node in &nodes {
            let theirs = cluster_of(node)?;
            ensure!(theirs == cluster, "node {} is in {theirs}, not in {cluster}", node.number);
        }
        let log = fs::read_to_string(nodes[0].agent_log())?;
        let restarted = name_of(&nodes[2])?;
        let fell = log.lines().find(|line| {
            line.contains(" WARN ") && line.contains("state=\"down\"") && !line.contains(&restarted)
        });
        ensure!(fell.is_none(), "{fell:?}");
        Ok(())
    });
    report.check("the flood lasted until then, and cost little", || {
        ensure!(
            attacker.pid_of("flood").is_some(),
            "it ended: {}",
            fs::read_to_string(attacker.log_of("flood"))?
        );
        let after = Usage::of(&nodes[0])?;
        let share = (after.cpu - before.cpu).as_secs_f64() / (after.at - before.at).as_secs_f64();
        let most = nodes.iter().map(Usage::of).collect::<Result<Vec<_>>>()?;
        let most = most.iter().map(|usage| usage.peak).max().unwrap_or_default();
        println!(
            "      an agent took {:.0} % of a processor and at most {} MiB, {:.0} s into the flood",
            share * 100.0,
            most / 1024,
            began.elapsed().as_secs_f64()
        );
        for node in &nodes {
            println!("      node {} dropped {}", node.number, node.json("status")?["rejects"]);
        }
        ensure!(most < MOST_MEMORY, "an agent held {most} KiB");
        Ok(())
    });
    attacker.end_other("flood")?;
    report.check("afterwards all is as before", || {
        up(&nodes, &nodes, FORM_LIMIT)?;
        no_errors(&nodes)
    });
    Ok(())
}

/// Waits until each of these nodes sees all of `wanted` up. Gives when that was.
fn up(nodes: &[Node], wanted: &[Node], limit: Duration) -> Result<Instant> {
    let deadline = Instant::now() + limit;
    let who = &nodes[..wanted.len()];
    loop {
        let mut least = usize::MAX;
        for node in who {
            let ups = node
                .members()
                .map_or(0, |members| members.iter().filter(|member| member.state == "up").count());
            least = least.min(ups);
        }
        if least >= wanted.len() {
            return Ok(Instant::now());
        }
        let problem = || Ok::<_, anyhow::Error>(who.last().context("no node")?.json("status")?.to_string());
        ensure!(
            Instant::now() < deadline,
            "after {} s somebody sees {least} of {} up; the last says {:?}",
            limit.as_secs(),
            wanted.len(),
            problem()
        );
        sleep(LOOK_AGAIN);
    }
}

fn cluster_of(node: &Node) -> Result<String> {
    node.json("status")?["cluster_id"].as_str().map(str::to_owned).context("no cluster_id in status")
}

fn name_of(node: &Node) -> Result<String> {
    node.json("status")?["name"].as_str().map(str::to_owned).context("no name in status")
}

fn address_show(node: &Node) -> Result<serde_json::Value> {
    let shown = node.output(&["ip", "-json", "-6", "address", "show", "dev", "eth0"])?;
    serde_json::from_slice(&shown.stdout).context("ip(8) printed something else")
}

fn link_local(node: &Node) -> Result<String> {
    let shown = address_show(node)?;
    shown[0]["addr_info"][0]["local"].as_str().map(str::to_owned).context("eth0 has no address")
}

fn interface_of(node: &Node) -> Result<u64> {
    address_show(node)?[0]["ifindex"].as_u64().context("eth0 has no index")
}

/// What an agent took so far.
struct Usage {
    at: Instant,
    cpu: Duration,
    /// Most memory that it held, in KiB.
    peak: u64,
}

impl Usage {
    fn of(node: &Node) -> Result<Self> {
        let pid = node.pid_of("agent").context("the agent does not run")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> =
            stat.rsplit_once(')').context("an odd stat file")?.1.split_whitespace().collect();
        // User and system time in hundredths of a second (proc(5), fields 14 and 15).
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.split_whitespace().next()).context("no VmHWM")?.parse()?;
        Ok(Self { at: Instant::now(), cpu: Duration::from_millis(ticks * 10), peak })
    }
}

/// A generator that needs no crate.
struct Garbage(u64);

impl Garbage {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let length = part.len();
            part.copy_from_slice(&self.next().to_ne_bytes()[..length]);
        }
    }
}

fn neighbour(n: u64) -> Ipv6Addr {
    Ipv6Addr::from(0xfe80_u128 << 112 | 0xbad << 32 | u128::from(n))
}

/// Opens to each, and beacons to all, from addresses that nobody has.
fn garbage(end: Instant, addresses: u32, interface: u32, targets: &[Ipv6Addr]) -> Result<u64> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_freebind_v6(true)?;
    socket.bind(&SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, PORT, 0, 0).into())?;
    let mut garbage = Garbage(0x9e37_79b9_7f4a_7c15);
    let (began, mut sent) = (Instant::now(), 0u64);
    let mut refused = 0u64;
    while Instant::now() < end {
        let due = began.elapsed().as_secs_f64() * f64::from(OPENS + BEACONS);
        if sent as f64 >= due {
            sleep(Duration::from_millis(1));
            continue;
        }
        let beacon = garbage.next() % u64::from(OPENS + BEACONS) < u64::from(BEACONS);
        let (mut bytes, to) = match beacon {
            true => (vec![0; 138], GROUP),
            false => (vec![0; 158], targets[sent as usize % targets.len()]),
        };
        garbage.fill(&mut bytes[..32]);
        bytes[..2].copy_from_slice(&[1, if beacon { 1 } else { 2 }]);
        let from = neighbour(garbage.next() % u64::from(addresses));
        let info = nix::libc::in6_pktinfo {
            ipi6_addr: nix::libc::in6_addr { s6_addr: from.octets() },
            ipi6_ifindex: interface,
        };
        let to = SockaddrIn6::from(SocketAddrV6::new(to, PORT, 0, interface));
        let control = [ControlMessage::Ipv6PacketInfo(&info)];
        sent += 1;
        if let Err(error) =
            sendmsg(socket.as_raw_fd(), &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), Some(&to))
        {
            refused += 1;
            ensure!(refused < 1000 || refused < sent / 2, "the kernel refuses to send: {error}");
        }
    }
    Ok(sent - refused)
}

/// Connections on which nothing is said: as many as the other side takes, each opened again when it is closed.
fn half_open(end: Instant, addresses: u32, interface: u32, targets: &[Ipv6Addr]) -> Result<u64> {
    for n in 0..u64::from(addresses) {
        let address = format!("{}/64", neighbour(n));
        let added = std::process::Command::new("ip")
            .args(["-6", "address", "add", &address, "dev", "eth0", "nodad"])
            .output()?;
        if !added.status.success() {
            bail!("no address {address}: {}", String::from_utf8_lossy(&added.stderr));
        }
    }
    // One for each address at each target, but not more than the agent's own bound by far.
    let each = (400 / addresses as usize).clamp(2, 20);
    let mut open: Vec<(u64, Ipv6Addr, Option<TcpStream>)> = Vec::new();
    for target in targets {
        for n in 0..u64::from(addresses) {
            (0..each).for_each(|_| open.push((n, *target, None)));
        }
    }
    let mut opened = 0;
    while Instant::now() < end {
        for (from, target, stream) in &mut open {
            let ended = match stream {
                None => true,
                Some(stream) => match stream.read(&mut [0; 16]) {
                    Ok(0) => true,
                    Ok(_) => false,
                    Err(error) => {
                        !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected)
                    }
                },
            };
            if ended {
                *stream = connect(neighbour(*from), *target, interface).ok();
                opened += u64::from(stream.is_some());
            }
        }
        sleep(Duration::from_millis(20));
    }
    Ok(opened)
}

fn connect(from: Ipv6Addr, to: Ipv6Addr, interface: u32) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddrV6::new(from, 0, 0, interface).into())?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SocketAddrV6::new(to, PORT, 0, interface).into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}
