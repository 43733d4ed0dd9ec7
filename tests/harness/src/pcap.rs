// SPDX-License-Identifier: Apache-2.0
//! Writing frames as a pcap file (draft-ietf-opsawg-pcap, microsecond time stamps, link type Ethernet).

use std::io::{self, Write};
use std::time::Duration;

/// Frames are at most this long in a capture: the largest that QEMU's stream backend sends.
const SNAP_LENGTH: u32 = 65_550;

/// Writes a capture; every frame is flushed, so that a file can be read while it grows.
pub struct Pcap<W: Write> {
    to: W,
}

impl<W: Write> Pcap<W> {
    /// Writes the file header.
    pub fn new(mut to: W) -> io::Result<Self> {
        to.write_all(&0xa1b2_c3d4u32.to_le_bytes())?;
        to.write_all(&2u16.to_le_bytes())?;
        to.write_all(&4u16.to_le_bytes())?;
        to.write_all(&[0; 8])?;
        to.write_all(&SNAP_LENGTH.to_le_bytes())?;
        to.write_all(&1u32.to_le_bytes())?;
        to.flush()?;
        Ok(Self { to })
    }

    /// Appends a frame seen at `at` since the epoch.
    pub fn frame(&mut self, at: Duration, frame: &[u8]) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(|_| io::Error::other("frame too long"))?;
        let mut record = Vec::with_capacity(16 + frame.len());
        record.extend((at.as_secs() as u32).to_le_bytes());
        record.extend(at.subsec_micros().to_le_bytes());
        record.extend(length.to_le_bytes());
        record.extend(length.to_le_bytes());
        record.extend(frame);
        self.to.write_all(&record)?;
        self.to.flush()
    }
}

/// The frames of a capture file made by [`Pcap`]; an unfinished last record is left out.
pub fn frames(file: &[u8]) -> Vec<&[u8]> {
    let mut rest = file.get(24..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some(length) = rest.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes) {
        let Some(frame) = rest.get(16..16 + length as usize) else { break };
        frames.push(frame);
        rest = &rest[16 + length as usize..];
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_wrote() {
        let mut file = Vec::new();
        let mut pcap = Pcap::new(&mut file).expect("header");
        pcap.frame(Duration::from_millis(1_500), b"first frame").expect("frame");
        pcap.frame(Duration::from_millis(1_501), b"second").expect("frame");
        assert_eq!(file.len(), 24 + 16 + 11 + 16 + 6);
        assert_eq!(file[24..32], [1, 0, 0, 0, 0x20, 0xa1, 7, 0]);
        assert_eq!(frames(&file), [&b"first frame"[..], b"second"]);
        assert_eq!(frames(&file[..file.len() - 1]), [&b"first frame"[..]]);
    }
}
