// SPDX-License-Identifier: Apache-2.0
//! Cables: what the switch does to them, and what the guests see of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::Daemon;
use crate::protocol::LinkChange;
use crate::qemu;
use crate::switch::{Direction, Faults, PortId};
use crate::timeouts;

impl Daemon {
    pub(super) async fn link(
        &self,
        vm: u32,
        nic: Option<u8>,
        direction: Direction,
        change: LinkChange,
    ) -> Result<Value> {
        let before = self.carriers(vm);
        let exists = self.fabric.switch(|switch| {
            if let LinkChange::OpensAfterMs(after) = change {
                return switch.set_opening(vm, nic, Duration::from_millis(after));
            }
            switch.set_faults(vm, nic, direction, |faults| match change {
                LinkChange::Off => faults.off = true,
                LinkChange::On => *faults = Faults::default(),
                LinkChange::LossPpm(ppm) => faults.loss_ppm = ppm,
                LinkChange::DelayUs(delay) => faults.delay_us = delay,
                LinkChange::OpensAfterMs(_) => {}
            })
        });
        match nic {
            _ if exists => {}
            Some(nic) if self.machines().contains_key(&vm) => {
                bail!("VM {vm} has no network card {nic}: `vm-cluster info` lists the ports")
            }
            _ => bail!("{}", self.no_such(vm)),
        }
        for (port, up) in self.carriers(vm) {
            if up && before.get(&port) == Some(&false) {
                self.fabric.plugged(port);
            }
        }
        self.set_carrier(vm).await?;
        Ok(Value::Null)
    }

    pub(super) async fn set_carriers(&self) -> Result<()> {
        let vms: Vec<u32> = self.machines().keys().copied().collect();
        for vm in vms {
            self.set_carrier(vm).await?;
        }
        Ok(())
    }

    /// A link that is off in both directions is a pulled cable, which the guest sees.
    pub(super) async fn set_carrier(&self, vm: u32) -> Result<()> {
        let Some(running) = self.machine_running(vm)? else { return Ok(()) };
        let limit = self.limit(timeouts::QMP);
        let cards = self.spec().vms.get(&vm).map_or(0, |spec| spec.shape.lans.len());
        for (port, up) in self.carriers(vm) {
            if usize::from(port.nic) <= cards {
                let link = json!({"name": qemu::nic_id(port.nic), "up": up});
                running.qmp.command("set_link", link, limit).await?;
            }
        }
        Ok(())
    }

    /// The VM's ports, and whether each has a cable in.
    fn carriers(&self, vm: u32) -> BTreeMap<PortId, bool> {
        let ports = self.fabric.switch(|switch| switch.view());
        let of_vm = ports.into_iter().filter(|(port, _)| port.vm == vm);
        of_vm.map(|(port, view)| (port, !(view.sent.off && view.received.off))).collect()
    }
}
