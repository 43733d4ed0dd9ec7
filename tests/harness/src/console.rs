// SPDX-License-Identifier: Apache-2.0
//! What the serial console tells.

/// How far a boot is, as far as can be seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Switched off.
    Off,
    /// UEFI has not chosen what to boot.
    Firmware,
    /// systemd-boot or the UKI's stub.
    Loader,
    /// Linux, initrd included.
    Kernel,
    /// Commands can be run.
    System,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Firmware => "firmware",
            Self::Loader => "boot loader",
            Self::Kernel => "kernel",
            Self::System => "system up",
        })
    }
}

/// How far the boot is that printed `console`.
pub fn stage_of(console: &str) -> Stage {
    if console.contains("EFI stub:") || console.contains("Linux version") {
        Stage::Kernel
    } else if console.contains("BdsDxe: starting") {
        Stage::Loader
    } else {
        Stage::Firmware
    }
}

/// Console output as text: without escape sequences (ECMA-48) and carriage returns.
pub fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => match characters.next() {
                Some('[') => while characters.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                Some(']') => while characters.next().is_some_and(|c| c != '\u{7}' && c != '\u{1b}') {},
                _ => {}
            },
            '\r' | '\0' => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_text_is_without_control_sequences() {
        assert_eq!(plain(b"\x1b[2J\x1b[01;01HBds\x1b[0mDxe\r\n\x1b]0;title\x07x"), "BdsDxe\nx");
    }

    #[test]
    fn stages_follow_the_console() {
        assert_eq!(stage_of(""), Stage::Firmware);
        assert_eq!(
            stage_of(
                "BdsDxe: loading Boot0001
BdsDxe: starting Boot0001
"
            ),
            Stage::Loader
        );
        assert_eq!(
            stage_of(
                "BdsDxe: starting Boot0001
EFI stub: Loaded initrd
"
            ),
            Stage::Kernel
        );
    }
}
