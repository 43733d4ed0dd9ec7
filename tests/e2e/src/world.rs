// SPDX-License-Identifier: Apache-2.0
//! The clusters that stories play in.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cluster_harness::bundle;
use cluster_harness::client::{Client, Member, Vm};
use cluster_harness::cluster::{self, Plan, Provisioning};
use cluster_harness::protocol::Request;
use cluster_harness::state::{ClusterDir, Shape};
use cluster_harness::timeouts;
use serde_json::json;

/// Name of the cluster in cluster.toml: a word that nothing else on the wire contains.
pub const CLUSTER_NAME: &str = "lighthouse-e2e";
/// How many VMs the shared cluster has.
const MEMBERS: u32 = 3;

/// Makes clusters, and keeps the formed one for the next story.
pub struct World {
    image: PathBuf,
    logs: PathBuf,
    formed: Option<Formed>,
    formed_is_used: bool,
    alone: Option<Alone>,
}

/// Three VMs that have formed a cluster.
pub struct Formed {
    client: Client,
    /// The cluster.toml of all three.
    pub cluster_toml: String,
    /// The members when it was saved, by VM number.
    pub members: BTreeMap<u32, Member>,
    /// Every frame on the switch from power on until it was saved.
    pub capture: PathBuf,
    /// Power on until all three saw all three up.
    pub took: Duration,
}

/// VMs of one story, in a cluster of their own; often just number 1.
pub struct Alone {
    client: Client,
    /// The cluster.toml of those that have the cluster's.
    pub cluster_toml: String,
}

impl World {
    pub(crate) fn new(logs: PathBuf) -> Result<Self> {
        let image = env::var_os("CLUSTER_OS_IMAGE")
            .context("CLUSTER_OS_IMAGE does not name the raw image: run `just e2e`, which builds it")?;
        Ok(Self { image: image.into(), logs, formed: None, formed_is_used: false, alone: None })
    }

    /// Whether the shared cluster is there already.
    #[must_use]
    pub fn is_formed(&self) -> bool {
        self.formed.is_some()
    }

    /// The shared cluster, as it was when it had just formed.
    pub fn formed(&mut self) -> Result<&Formed> {
        self.alone = None;
        if self.formed.is_none() {
            self.formed = Some(Formed::new(self.plan(&Self::key_file()?))?);
        } else if self.formed_is_used
            && let Some(formed) = &self.formed
        {
            let start = Instant::now();
            formed.client.request(&Request::Restore)?;
            note(&format!("back to the formed cluster in {:.1} s", start.elapsed().as_secs_f64()));
        }
        self.formed_is_used = true;
        self.formed.as_ref().context("the cluster was not made")
    }

    /// A VM with nothing on its disk but the image and `provisioning`, switched on.
    pub fn alone(&mut self, provisioning: &Provisioning) -> Result<&Alone> {
        let alone = self.machine(provisioning, Shape::default())?;
        alone.vm().start()?;
        Ok(alone)
    }

    /// VMs with this hardware and one cluster.toml, switched on.
    pub fn lab(&mut self, vms: u32, shape: Shape) -> Result<&Alone> {
        let alone = self.machine(&Provisioning::Cluster, shape.clone())?;
        for _ in 1..vms {
            cluster::add(&alone.client, &Provisioning::Cluster, Some(shape.clone()))?;
        }
        for vm in alone.vms()? {
            vm.start()?;
        }
        Ok(alone)
    }

    /// Where files are kept that one may want to see later.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The image under test.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// An image of another version.
    pub fn other_image(&self) -> Result<PathBuf> {
        let path = env::var_os("CLUSTER_OS_OTHER_IMAGE")
            .context("CLUSTER_OS_OTHER_IMAGE does not name an image of another version: `just campaign update` builds one")?;
        Ok(path.into())
    }

    /// The release of that image, as a folder that `cluster-update import` takes.
    pub fn other_release(&self) -> Result<PathBuf> {
        let folder = self.other_image()?.with_file_name("release");
        anyhow::ensure!(folder.join("manifest.json").exists(), "`{}` is no release", folder.display());
        Ok(folder)
    }

    /// The key that signs releases for these images: a file.
    pub fn development_key(&self) -> Result<PathBuf> {
        let path = env::var_os("CLUSTER_OS_DEVELOPMENT_KEY").context(
            "CLUSTER_OS_DEVELOPMENT_KEY does not name the key of this checkout: `just campaign update` gives it",
        )?;
        Ok(path.into())
    }

    /// A VM with this hardware, still switched off.
    pub fn machine(&mut self, provisioning: &Provisioning, shape: Shape) -> Result<&Alone> {
        self.alone = None;
        if let Some(formed) = &self.formed {
            // They would only take time from the other; they are restored before they are used again.
            self.formed_is_used = true;
            for vm in formed.client.running()? {
                formed.client.vm(vm).qmp("stop", json!({}))?;
            }
        }
        let plan = self.plan(&Self::key_file()?);
        let client = make("e2e-alone", &plan)?;
        cluster::add(&client, provisioning, Some(shape))?;
        Ok(self.alone.insert(Alone { client, cluster_toml: plan.cluster_toml }))
    }

    /// Collects what one wants to see after a failure; returns an excerpt.
    pub(crate) fn collect(&self, story: &str) -> String {
        let folder = self.logs.join(story);
        let clients = [
            self.formed.as_ref().map(|formed| &formed.client),
            self.alone.as_ref().map(|alone| &alone.client),
        ];
        // The one that was made last is the one that failed.
        let Some(client) = clients.into_iter().flatten().next_back() else { return String::new() };
        match bundle::collect(client, &folder) {
            Ok(()) => format!("{}logs are in {}", bundle::excerpt(&folder), folder.display()),
            Err(error) => format!("logs could not be collected: {error:#}"),
        }
    }

    pub(crate) fn end_story(&mut self) {
        self.alone = None;
    }

    fn plan(&self, cluster_toml: &str) -> Plan {
        let cluster_toml = cluster_toml.to_owned();
        Plan { image: self.image.clone(), shape: Shape::default(), cluster_toml, seed: 1 }
    }

    fn key_file() -> Result<String> {
        cluster::new_cluster_toml(CLUSTER_NAME)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let formed = self.formed.take().map(|formed| formed.client);
        for client in formed.into_iter().chain(self.alone.take().map(|alone| alone.client)) {
            // Its daemon ends with the connection anyway; this waits for it.
            let _ = client.request(&Request::Shutdown);
        }
    }
}

impl Formed {
    fn new(plan: Plan) -> Result<Self> {
        let client = make("e2e", &plan)?;
        let capture = client.dir().root().join("formation.pcap");
        client.request(&Request::StartCapture { path: capture.clone() })?;
        let start = Instant::now();
        for _ in 0..MEMBERS {
            let vm = cluster::add(&client, &Provisioning::Cluster, None)?;
            client.vm(vm).start()?;
        }
        for vm in 1..=MEMBERS {
            client.vm(vm).wait_boot()?;
        }
        note(&format!("{MEMBERS} VMs take commands {} s after power on", start.elapsed().as_secs()));
        let mut members = BTreeMap::new();
        for vm in 1..=MEMBERS {
            members.insert(vm, wait_all_up(client.vm(vm), MEMBERS as usize)?);
        }
        let took = start.elapsed();
        note(&format!("{MEMBERS} members up on each node {} s after power on", took.as_secs()));
        client.request(&Request::StopCapture)?;
        let start = Instant::now();
        client.request(&Request::Snapshot)?;
        note(&format!("saved in {:.1} s", start.elapsed().as_secs_f64()));
        Ok(Self { client, cluster_toml: plan.cluster_toml, members, capture, took })
    }

    /// The numbers of its VMs.
    pub fn vms(&self) -> impl Iterator<Item = Vm<'_>> {
        (1..=MEMBERS).map(|vm| self.client.vm(vm))
    }

    /// Adds a VM, switches it on, and does not wait.
    pub fn add(&self, provisioning: &Provisioning) -> Result<Vm<'_>> {
        let vm = cluster::add(&self.client, provisioning, None)?;
        self.client.vm(vm).start()?;
        Ok(self.client.vm(vm))
    }
}

impl Deref for Formed {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Alone {
    /// The VM; the first, if there are several.
    pub fn vm(&self) -> Vm<'_> {
        self.client.vm(1)
    }

    /// VM `number`.
    pub fn nth(&self, number: u32) -> Vm<'_> {
        self.client.vm(number)
    }

    /// All its VMs.
    pub fn vms(&self) -> Result<Vec<Vm<'_>>> {
        Ok(self.client.spec()?.vms.into_keys().map(|vm| self.client.vm(vm)).collect())
    }

    /// Changes the hardware of the first VM, which must be off.
    pub fn rebuild(&self, change: impl FnOnce(&mut Shape)) -> Result<()> {
        rebuild(&self.client, 1, change)
    }
}

impl Deref for Alone {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Changes the hardware of a VM, which must be off.
pub fn rebuild(client: &Client, vm: u32, change: impl FnOnce(&mut Shape)) -> Result<()> {
    let mut spec = client.spec()?.vms.remove(&vm).with_context(|| format!("there is no VM {vm}"))?;
    change(&mut spec.shape);
    client.request(&Request::Define { vm, spec: Box::new(spec) }).map(drop)
}

/// Gives the first VM, which must be off, another disk: one that begins as the raw image `base`, which must not change.
pub fn rebase(node: &Alone, base: &Path) -> Result<()> {
    let mut spec = node.spec()?.vms.remove(&1).context("there is no VM 1")?;
    spec.base = fs::canonicalize(base).with_context(|| format!("there is no `{}`", base.display()))?;
    let disk = node.dir().vm(1).disk();
    fs::remove_file(&disk).with_context(|| format!("failed to remove `{}`", disk.display()))?;
    node.request(&Request::Define { vm: 1, spec: Box::new(spec) }).map(drop)
}

/// Waits until `vm` sees exactly `count` members, all up, and returns its own entry.
pub fn wait_all_up(vm: Vm<'_>, count: usize) -> Result<Member> {
    let up = |members: &[Member]| members.len() == count && members.iter().all(|member| member.state == "up");
    let members = vm.wait_members(&format!("{count} members up"), timeouts::MEMBERS, up)?;
    members.into_iter().find(|member| member.is_self).context("no member is marked as this node itself")
}

/// Tells how a story goes.
pub fn note(what: &str) {
    println!("      · {what}");
}

fn make(name: &str, plan: &Plan) -> Result<Client> {
    let dir = ClusterDir::new(name)?;
    dir.wait_until_free(Duration::from_secs(20))?;
    cluster::create(&dir, plan, MEMBERS as usize)
}
