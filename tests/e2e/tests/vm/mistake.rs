// SPDX-License-Identifier: Apache-2.0
//! A cluster.toml with a mistake: the node boots and says where the mistake is.

use anyhow::{Result, ensure};
use cluster_e2e::{World, note};
use cluster_harness::cluster::{Provisioning, new_cluster_toml};

pub(crate) fn a_wrong_file_never_bricks_a_node(world: &mut World) -> Result<()> {
    // Line 4 is the join key.
    let right = new_cluster_toml("lighthouse-e2e")?;
    let text = right.replace("join_key = \"cos1-", "join_key = \"cos1-7");
    ensure!(text != right, "there is no join key in {right}");
    let node = world.alone(&Provisioning::File { name: "with a mistake".to_owned(), text })?;
    node.vm().wait_boot()?;
    node.vm().wait_console("line 4")?;
    let console = node.vm().console()?;
    let status = node.vm().sh("clusterctl status")?;
    for (place, shown) in [("console", &console), ("clusterctl status", &status)] {
        for needed in ["cluster.toml", "line 4", "join"] {
            ensure!(shown.contains(needed), "the {place} does not mention `{needed}`: {shown}");
        }
    }
    let problems = node.vm().cluster_status()?["problems"].clone();
    let fix = problems[0]["fix"].as_str().unwrap_or_default();
    ensure!(!fix.is_empty() && console.contains(fix), "the console does not say the fix `{fix}`: {console}");
    println!("{status}");
    note("the node runs; console and status name line and fix");
    Ok(())
}
