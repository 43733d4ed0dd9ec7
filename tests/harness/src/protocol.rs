// SPDX-License-Identifier: Apache-2.0
//! What is said on a cluster's control socket: one JSON line per request, one per answer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::state::VmSpec;
use crate::switch::{Direction, PortId, PortView};

/// A request to the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Request {
    /// The daemon ends, with all VMs, when this connection does.
    Hold,
    /// Takes [`Request::Hold`] back: the cluster goes on by itself.
    Release,
    /// Answers with [`ClusterStatus`].
    Status,
    /// Adds a VM, switched off, or changes the hardware of one that is off.
    Define {
        /// Its number.
        vm: u32,
        /// What it is.
        spec: Box<VmSpec>,
    },
    /// Switches a VM on; false if it was on.
    Start {
        /// Its number.
        vm: u32,
    },
    /// Shuts a VM down cleanly and waits until it is off; false if it was.
    Stop {
        /// Its number.
        vm: u32,
    },
    /// Cuts a VM's power; false if it was off.
    Kill {
        /// Its number.
        vm: u32,
    },
    /// A command of QEMU's machine protocol.
    Qmp {
        /// To which VM.
        vm: u32,
        /// Name of the command.
        execute: String,
        /// Its arguments, an object.
        arguments: Value,
    },
    /// A command of the guest agent.
    Guest {
        /// To which VM.
        vm: u32,
        /// Name of the command.
        execute: String,
        /// Its arguments, an object.
        arguments: Value,
    },
    /// Changes a VM's link, or all its links.
    Link {
        /// Which VM.
        vm: u32,
        /// Which of its cards, from 1; none: all.
        nic: Option<u8>,
        /// Which direction.
        direction: Direction,
        /// How.
        change: LinkChange,
    },
    /// Splits the switch.
    Partition {
        /// VMs that still reach each other; those in no group form one more.
        groups: Vec<BTreeSet<u32>>,
    },
    /// Ends partition and link faults.
    Heal,
    /// Records all frames into a file of the host.
    StartCapture {
        /// An absolute path.
        path: PathBuf,
    },
    /// Ends the recording.
    StopCapture,
    /// Saves the state of all VMs that are on.
    Snapshot,
    /// Takes all VMs back to the snapshot.
    Restore,
    /// Cuts all power and ends the daemon.
    Shutdown,
}

/// A change of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkChange {
    /// Cable pulled: nothing passes, and (for both directions) the guest sees no carrier.
    Off,
    /// Cable in, without faults.
    On,
    /// Frames lost, in parts per million.
    LossPpm(u32),
    /// Time that a frame takes, in microseconds.
    DelayUs(u64),
    /// After the next power on or plugging in, the carrier is there at once and frames pass so many milliseconds later. Zero
    /// opens the port now. For both directions.
    OpensAfterMs(u64),
}

/// A daemon's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// What was asked for.
    Ok(Value),
    /// What went wrong, and what to do.
    Error(String),
}

/// State of a VM as the harness sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// Switched off.
    Off,
    /// Switched on.
    On,
}

/// One VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmStatus {
    /// On or off.
    pub power: Power,
    /// Process of QEMU.
    pub pid: Option<u32>,
    /// Time since power on.
    pub uptime: Duration,
    /// The guest agent takes commands.
    pub guest_agent: bool,
    /// Reboots since power on.
    pub resets: u32,
    /// The guest's kernel has panicked.
    pub panicked: bool,
    /// Where the console output since power on or the last reboot begins in the serial log.
    pub serial_offset: u64,
    /// How QEMU ended, if it ended by itself.
    pub ended: Option<String>,
}

/// The whole cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Process of the daemon.
    pub pid: u32,
    /// VMs by number.
    pub vms: BTreeMap<u32, VmStatus>,
    /// The switch's ports.
    pub ports: BTreeMap<PortId, PortView>,
    /// There is a snapshot to go back to.
    pub snapshot: bool,
}
