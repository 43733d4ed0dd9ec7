// SPDX-License-Identifier: Apache-2.0
//! Names of ports.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A port: a network card of a VM. Written as `2` for the first card of VM 2, `2.2` for its second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PortId {
    /// The VM.
    pub vm: u32,
    /// Its card, from 1.
    pub nic: u8,
}

impl PortId {
    /// Card `nic` of VM `vm`.
    pub fn new(vm: u32, nic: u8) -> Self {
        Self { vm, nic }
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nic {
            1 => write!(f, "{}", self.vm),
            nic => write!(f, "{}.{nic}", self.vm),
        }
    }
}

impl From<PortId> for String {
    fn from(port: PortId) -> Self {
        port.to_string()
    }
}

impl TryFrom<String> for PortId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (vm, nic) = text.split_once('.').unwrap_or((&text, "1"));
        match (vm.parse(), u8::from_str(nic)) {
            (Ok(vm), Ok(nic)) if nic > 0 => Ok(Self { vm, nic }),
            _ => Err(format!("`{text}` is no port: write 2 or 2.1")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_written_as_people_write_them() {
        for (text, id) in [("2", PortId::new(2, 1)), ("2.1", PortId::new(2, 1)), ("12.3", PortId::new(12, 3))]
        {
            assert_eq!(PortId::try_from(text.to_owned()), Ok(id));
        }
        assert_eq!(PortId::new(2, 1).to_string(), "2");
        assert_eq!(PortId::new(2, 2).to_string(), "2.2");
        for text in ["", "a", "2.", "2.0", "2.300", "-1"] {
            assert!(PortId::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
