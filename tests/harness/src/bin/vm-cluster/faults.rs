// SPDX-License-Identifier: Apache-2.0
//! `link`, `partition`, `heal`: what goes wrong on the switch.

use std::collections::BTreeSet;
use std::str::FromStr;

use anyhow::{Result, ensure};
use clap::Args;
use cluster_harness::client::Client;
use cluster_harness::protocol::{LinkChange, Request};
use cluster_harness::switch::{Direction, PortId};

/// Change VM N's link, or its second card's: off, on, loss=5%, delay=50ms, port-delay=60s
///
/// `on` removes all faults. Loss and delay can be combined. With `port-delay` the link has carrier at once after the next
/// power on or plugging in, but passes frames only after that time; `port-delay=0s` opens the port now.
#[derive(Args)]
pub(crate) struct Link {
    /// Number of the VM, all its cards; or one card: 2.1
    at: At,
    /// off, on, loss=5%, delay=50ms, port-delay=60s
    #[arg(required = true)]
    changes: Vec<Change>,
    /// Only what the VM sends
    #[arg(long, conflicts_with = "received")]
    sent: bool,
    /// Only what the VM receives
    #[arg(long)]
    received: bool,
}

/// Split the switch: partition 1,2/3
///
/// VMs of the same part reach each other. VMs that are not named form another part.
#[derive(Args)]
pub(crate) struct Partition {
    /// Parts, separated by `/`; VMs in a part by `,`
    parts: Parts,
}

/// Undo link and partition
#[derive(Args)]
pub(crate) struct Heal {}

/// A VM, or one of its network cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct At {
    vm: u32,
    nic: Option<u8>,
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = PortId::try_from(text.to_owned())?;
        Ok(Self { vm: port.vm, nic: text.contains('.').then_some(port.nic) })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change(LinkChange);

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help =
            || format!("`{text}` is not a link change: use off, on, loss=5%, delay=50ms or port-delay=60s");
        let change = match text.split_once('=') {
            None if text == "off" => LinkChange::Off,
            None if text == "on" => LinkChange::On,
            Some(("loss", share)) => {
                let percent: f64 = share.trim_end_matches('%').parse().map_err(|_| help())?;
                if !(0.0..=100.0).contains(&percent) {
                    return Err(format!("loss is from 0% to 100%, not {share}"));
                }
                LinkChange::LossPpm((percent * 10_000.0).round() as u32)
            }
            Some(("delay", time)) => {
                let ms: f64 = time.trim_end_matches("ms").parse().map_err(|_| help())?;
                if !(0.0..=60_000.0).contains(&ms) {
                    return Err(format!("delay is from 0ms to 60000ms, not {time}"));
                }
                LinkChange::DelayUs((ms * 1000.0).round() as u64)
            }
            Some(("port-delay", time)) => LinkChange::OpensAfterMs(port_delay(time).map_err(|_| help())?),
            _ => return Err(help()),
        };
        Ok(Self(change))
    }
}

/// Reads `60s` or `2m`, a bare number is seconds; milliseconds come out.
pub(crate) fn port_delay(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60.0),
        None => (text.trim_end_matches('s'), 1.0),
    };
    let seconds =
        number.parse::<f64>().map_err(|_| format!("`{text}` is not a time: write 60s or 2m"))? * unit;
    if !(0.0..=86_400.0).contains(&seconds) {
        return Err(format!("`{text}` is out of range"));
    }
    Ok((seconds * 1000.0).round() as u64)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts(Vec<BTreeSet<u32>>);

impl FromStr for Parts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |word: &str| {
            word.trim()
                .parse::<u32>()
                .map_err(|_| format!("`{word}` is not a VM number: write parts like 1,2/3"))
        };
        let part = |part: &str| part.split(',').map(number).collect::<Result<BTreeSet<_>, _>>();
        let parts: Vec<BTreeSet<u32>> = text.split('/').map(part).collect::<Result<_, _>>()?;
        let mut all = BTreeSet::new();
        for vm in parts.iter().flatten() {
            if !all.insert(*vm) {
                return Err(format!("VM {vm} is named twice"));
            }
        }
        Ok(Self(parts))
    }
}

pub(crate) fn link(client: &Client, verb: &Link) -> Result<()> {
    let direction = match (verb.sent, verb.received) {
        (true, _) => Direction::Sent,
        (_, true) => Direction::Received,
        _ => Direction::Both,
    };
    for change in &verb.changes {
        client.request(&Request::Link { vm: verb.at.vm, nic: verb.at.nic, direction, change: change.0 })?;
    }
    Ok(())
}

pub(crate) fn partition(client: &Client, verb: &Partition) -> Result<()> {
    let known = client.status()?.vms;
    for vm in verb.parts.0.iter().flatten() {
        ensure!(known.contains_key(vm), "there is no VM {vm}: `vm-cluster status` lists them");
    }
    client.request(&Request::Partition { groups: verb.parts.0.clone() }).map(drop)
}

pub(crate) fn heal(client: &Client) -> Result<()> {
    client.request(&Request::Heal).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read() {
        assert_eq!("loss=5%".parse(), Ok(Change(LinkChange::LossPpm(50_000))));
        assert_eq!("delay=1.5ms".parse(), Ok(Change(LinkChange::DelayUs(1_500))));
        assert_eq!("port-delay=60s".parse(), Ok(Change(LinkChange::OpensAfterMs(60_000))));
        assert_eq!("port-delay=1.5m".parse(), Ok(Change(LinkChange::OpensAfterMs(90_000))));
        assert!("port-delay=soon".parse::<Change>().is_err());
        assert_eq!("2".parse(), Ok(At { vm: 2, nic: None }));
        assert_eq!("2.1".parse(), Ok(At { vm: 2, nic: Some(1) }));
        assert!("loss=101%".parse::<Change>().is_err());
        assert!("of".parse::<Change>().is_err_and(|error| error.contains("use off, on")));
    }

    #[test]
    fn parts_are_read() {
        assert_eq!("1,2/3".parse(), Ok(Parts(vec![[1, 2].into(), [3].into()])));
        assert!("1,2/2".parse::<Parts>().is_err_and(|error| error.contains("twice")));
        assert!("1,/2".parse::<Parts>().is_err());
    }
}
