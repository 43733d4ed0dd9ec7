// SPDX-License-Identifier: Apache-2.0
//! `netns-mishaps`: what goes wrong on single machines, with real daemons in network namespaces: lost files, full disks, equal
//! names, foreign addresses, requests that cross. Runs in CI.

use std::{
    fs,
    process::{ExitCode, Output},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use cluster_netns::{
    Node, World,
    story::{Report, no_errors, ping_each_other, tell},
};

/// Forming, or coming back together.
const FORM_LIMIT: Duration = Duration::from_secs(60);
/// Something is told, or no longer so.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

type Story = fn(&World, &mut Report) -> Result<()>;

const STORIES: [(&str, Story); 5] = [
    ("leave-and-join", leave_and_join),
    ("lost-identity", lost_identity),
    ("equal-names", equal_names),
    ("mesh-range", mesh_range),
    ("full-disk", full_disk),
];

/// Tells stories of what goes wrong on single machines.
#[derive(Parser)]
#[command(name = "netns-mishaps")]
struct Arguments {
    /// Only these.
    #[arg(value_parser = STORIES.map(|(name, _)| name))]
    stories: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report::default();
    for (name, story) in STORIES {
        if !arguments.stories.is_empty() && !arguments.stories.iter().any(|wanted| wanted == name) {
            continue;
        }
        println!("story {name}");
        report = match tell(name, report, story) {
            Ok(report) => report,
            Err(error) => {
                eprintln!("netns-mishaps: {name}: {error:#}");
                return ExitCode::FAILURE;
            }
        };
    }
    report.finish()
}

/// Requests one behind the other, at once, and where there is nothing to do.
fn leave_and_join(world: &World, report: &mut Report) -> Result<()> {
    let nodes = formed(world, 3, report)?;
    let node = &nodes[1];
    let phase =
        || -> Result<String> { Ok(node.json("status")?["phase"].as_str().unwrap_or_default().to_owned()) };
    let others = [nodes[0].clone(), nodes[2].clone()];
    report.check("a join right behind a leave brings the node back before it returns", || {
        exits(&node.clusterctl(&["leave", "--yes"])?, 0)?;
        exits(&node.clusterctl(&["join"])?, 0)?;
        ensure!(phase()? == "member", "it is {}", phase()?);
        // Its wireguard-go ended with its interface; in the image systemd starts it again.
        node.start()?;
        all_up(&nodes)
    });
    report.check("`leave` returns when the node is out, over a power cut at once, and all know it", || {
        exits(&node.clusterctl(&["leave", "--yes"])?, 0)?;
        node.kill()?;
        node.start()?;
        ensure!(phase()? == "left", "it is {}", phase()?);
        World::await_members(&others, 1, "left", NOTICE_LIMIT, |_| {})
    });
    report.check("to leave twice is no failure, and a join that cannot be done in time is one", || {
        exits(&node.clusterctl(&["leave", "--yes"])?, 0)?;
        world.set_port(node, 0, None)?;
        exits(&node.clusterctl(&["join", "--timeout", "2"])?, 6)?;
        world.set_port(node, 0, Some(0))?;
        exits(&node.clusterctl(&["join"])?, 0)?;
        exits(&node.clusterctl(&["join"])?, 0)?;
        node.start()?;
        all_up(&nodes)
    });
    report.check("of a leave and a join at once on the bus both are done, in their order", || {
        let call = "busctl call org.clusteros.Agent1 /org/clusteros/Agent1 org.clusteros.Agent1";
        // The second is sent while the first is under way: it takes two seconds.
        let both = format!("{call} Leave & first=$!; sleep 0.5; {call} Join || exit 2; wait $first");
        exits(&node.output(&["bash", "-c", &both])?, 0)?;
        await_that("membership", || Ok(phase()? == "member"))?;
        node.start()?;
        all_up(&nodes)
    });
    report.check("a node that nobody hears leaves, and says that nobody was told", || {
        world.set_port(node, 0, None)?;
        await_that("loneliness", || Ok(phase()? == "waiting"))?;
        let output = node.clusterctl(&["leave", "--yes"])?;
        exits(&output, 0)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("no other member could be reached"), "it says {said}");
        world.set_port(node, 0, Some(0))
    });
    report.check("a node without a cluster has nothing to leave", || {
        let blank = world.add(None)?;
        exits(&blank.clusterctl(&["leave", "--yes"])?, 1)?;
        exits(&blank.clusterctl(&["join"])?, 1)
    });
    report.check("no agent logged an error", || no_errors(&nodes));
    Ok(())
}

/// Both copies of an identity are lost, in each way; then one copy.
fn lost_identity(world: &World, report: &mut Report) -> Result<()> {
    let nodes = formed(world, 2, report)?;
    let node = &nodes[1];
    for (how, content) in [("empty", Some("")), ("gone", None), ("cut", Some("COSR"))] {
        report.check(
            &format!("identity {how}: the node joins as a new one, says so, and never says that it left"),
            || {
                let before = id(node)?;
                node.kill()?;
                for file in ["identity", "identity.copy"] {
                    match content {
                        Some(content) => fs::write(node.state_file(file), content)?,
                        None => fs::remove_file(node.state_file(file))?,
                    }
                }
                node.start()?;
                ensure!(id(node)? != before, "it is still {before}");
                ensure!(
                    problem(node, "identity")?.is_some_and(|said| said.contains("new node")),
                    "it says nothing"
                );
                await_that("the new node among the members that are up", || {
                    let new = id(node)?;
                    Ok(nodes[0].members()?.iter().any(|member| member.id == new && member.state == "up"))
                })?;
                ensure!(nodes[0].members()?.iter().all(|member| member.state != "left"), "somebody left");
                let log = fs::read_to_string(node.agent_log())?;
                ensure!(!log.contains("left the cluster"), "its log says that it left");
                ping_each_other(&nodes)
            },
        );
    }
    report.check("one good copy is enough, and both are good afterwards", || {
        let before = id(node)?;
        node.kill()?;
        fs::write(node.state_file("identity"), b"")?;
        node.start()?;
        ensure!(id(node)? == before, "it is another node");
        let copies = ["identity", "identity.copy"].map(|file| fs::read(node.state_file(file)));
        let [Ok(first), Ok(copy)] = copies else { anyhow::bail!("a copy is missing") };
        ensure!(first == copy && !first.is_empty(), "the copies differ");
        ensure!(problem(node, "identity")?.is_none(), "it complains");
        Ok(())
    });
    Ok(())
}

/// Every stick carries the same `hostname`.
fn equal_names(world: &World, report: &mut Report) -> Result<()> {
    let toml = world.fresh_cluster_toml()?;
    let named = |name: &str| format!("{toml}\n[node]\nhostname = \"{name}\"\n");
    let nodes = [world.add(Some(&named("alpha")))?, world.add(Some(&named("alpha")))?];
    report.check("both are members, and each names the other", || {
        all_up(&nodes)?;
        for (one, other) in [(0, 1), (1, 0)] {
            let short = id(&nodes[other])?[..8].to_owned();
            await_that(&format!("word of {short}"), || {
                Ok(problem(&nodes[one], "hostname")?.is_some_and(|said| said.contains(&short)))
            })?;
        }
        Ok(())
    });
    report.check("once one has a name of its own, nothing is wrong", || {
        nodes[1].provision(&named("beta"))?;
        await_that("end of the problems", || {
            Ok(problem(&nodes[0], "hostname")?.is_none() && problem(&nodes[1], "hostname")?.is_none())
        })
    });
    report.check("no agent logged an error", || no_errors(&nodes));
    Ok(())
}

/// The LAN has addresses, routes and rules of the mesh's range.
fn mesh_range(world: &World, report: &mut Report) -> Result<()> {
    let nodes = formed(world, 2, report)?;
    let there = nodes[1].address()?;
    let ip = |arguments: &str| -> Result<()> {
        let all: Vec<&str> = std::iter::once("ip").chain(arguments.split(' ')).collect();
        exits(&nodes[0].output(&all)?, 0)
    };
    let told = |what: &str| {
        await_that(&format!("word of {what}"), || {
            Ok(problem(&nodes[0], "mesh route")?.is_some_and(|said| said.contains(what)))
        })
    };
    let clear = || await_that("end of the problem", || Ok(problem(&nodes[0], "mesh route")?.is_none()));
    // What, how to undo it, and what status says. The mesh works all the time.
    for (what, add, remove, said) in [
        (
            "an address",
            "address add fdc1:505::1/48 dev eth0",
            "address delete fdc1:505::1/48 dev eth0",
            "eth0 has fdc1:505::1/48",
        ),
        (
            "a route",
            "-6 route add fdc1:505::/48 dev eth0 metric 1",
            "-6 route delete fdc1:505::/48 dev eth0 metric 1",
            "eth0 has a route to fdc1:505::/48",
        ),
        (
            "a narrower route",
            &format!("-6 route add {there}/128 dev eth0"),
            &format!("-6 route delete {there}/128 dev eth0"),
            "eth0 has a route to",
        ),
    ] {
        report.check(&format!("{what} of the mesh's range on a card is named, and takes no packet"), || {
            ip(add)?;
            told(said)?;
            ping_each_other(&nodes)?;
            ip(remove)?;
            clear()
        });
    }
    report.check("it is the same when the address was there before the agent", || {
        nodes.iter().try_for_each(Node::kill)?;
        ip("address add fdc1:505::1/48 dev eth0")?;
        nodes.iter().try_for_each(Node::start)?;
        all_up(&nodes)?;
        told("eth0 has fdc1:505::1/48")?;
        ping_each_other(&nodes)?;
        ip("address delete fdc1:505::1/48 dev eth0")?;
        clear()
    });
    report.check("a rule that takes a member's packets elsewhere is named with the card", || {
        ip("-6 route add default dev eth0 table 77")?;
        ip(&format!("-6 rule add priority 500 to {there}/128 lookup 77"))?;
        told("go to eth0")?;
        ip("-6 rule delete priority 500")?;
        clear()?;
        ping_each_other(&nodes)
    });
    report.check("no agent logged an error", || no_errors(&nodes));
    Ok(())
}

/// The disk of a node is full when it starts, and is read-only later.
fn full_disk(world: &World, report: &mut Report) -> Result<()> {
    let nodes = formed(world, 2, report)?;
    let node = &nodes[1];
    node.kill()?;
    let state = node.state_file("identity").parent().context("no folder")?.to_owned();
    let state = state.to_str().context("a path that is no UTF-8")?;
    let fill = format!("{state}/fill");
    let shell = |script: &str| -> Result<()> { exits(&node.output(&["bash", "-c", script])?, 0) };
    shell(&format!(
        "set -e; cp -a {state} /run/saved; mount -t tmpfs -o size=64k tmpfs {state}; cp -a /run/saved/. {state}/; \
         dd if=/dev/zero of={fill} bs=4k 2>/dev/null || true"
    ))?;
    node.start()?;
    node.provision(&format!("{}\n[node]\nhostname = \"gamma\"\n", fs::read_to_string(node.config_file())?))?;
    report.check("a full disk is named with what could not be saved", || {
        for area in ["disk", "state"] {
            await_that(&format!("word of the {area}"), || {
                Ok(problem(node, area)?.is_some_and(|said| said.contains("No space left")))
            })?;
        }
        Ok(())
    });
    report.check("with room again it is a member, all is saved, and nothing is wrong", || {
        shell(&format!("rm {fill}"))?;
        await_that("end of the problems", || Ok(problems(node)?.is_empty()))?;
        all_up(&nodes)?;
        shell(&format!("grep -q gamma {state}/cluster.toml && test -s {state}/generation"))
    });
    report.check(
        "a read-only disk stops no agent, is named, and all is saved once it can be written",
        || {
            shell(&format!("mount -o remount,ro {state}"))?;
            node.stop()?;
            node.start()?;
            await_that("word of the disk", || {
                Ok(problem(node, "disk")?.is_some_and(|said| said.contains("Read-only")))
            })?;
            shell(&format!("mount -o remount,rw {state}"))?;
            await_that("end of the problems", || Ok(problems(node)?.is_empty()))?;
            all_up(&nodes)
        },
    );
    Ok(())
}

/// So many nodes that are one cluster.
fn formed(world: &World, count: usize, report: &mut Report) -> Result<Vec<Node>> {
    let toml = world.fresh_cluster_toml()?;
    let nodes: Vec<Node> = (0..count).map(|_| world.add(Some(&toml))).collect::<Result<_>>()?;
    report.check(&format!("{count} nodes become one cluster"), || all_up(&nodes));
    Ok(nodes)
}

fn all_up(nodes: &[Node]) -> Result<()> {
    World::await_members(nodes, nodes.len(), "up", FORM_LIMIT, |_| {})
}

fn exits(output: &Output, code: i32) -> Result<()> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        output.status.code() == Some(code),
        "it ended with {}, not {code}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(())
}

fn id(node: &Node) -> Result<String> {
    node.json("identity")?["id"].as_str().map(str::to_owned).context("no id in identity")
}

fn problems(node: &Node) -> Result<Vec<serde_json::Value>> {
    node.json("status")?["problems"].as_array().cloned().context("no problems in status")
}

fn problem(node: &Node, area: &str) -> Result<Option<String>> {
    let found = problems(node)?.into_iter().find(|problem| problem["area"] == area);
    Ok(found.map(|problem| problem["message"].to_string()))
}

fn await_that(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + NOTICE_LIMIT;
    while !holds()? {
        ensure!(Instant::now() < deadline, "no {what} after {} s", NOTICE_LIMIT.as_secs());
        sleep(LOOK_AGAIN);
    }
    Ok(())
}
