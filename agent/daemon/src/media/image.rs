// SPDX-License-Identifier: Apache-2.0
//! A whole image onto a stick, disk or file.
//!
//! The first piece, which has the partition table, is written last: an interrupted write leaves a disk that is plainly
//! empty. The end of the disk is cleared, where an earlier system may have left a copy of its own table that would count
//! if ours were ever torn.

use std::io;

use anyhow::{Context as _, Result, ensure};

use super::Storage;

/// Also the piece that is cleared at either end: more than any partition table takes.
const PIECE: usize = 1 << 20;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes go to the medium.
    Write,
    /// Bytes come back and are compared.
    Compare,
}

/// Writes `length` bytes of `image` to the beginning of `to`, which has `capacity` bytes, then reads all of them back.
/// `progress` hears how many bytes of a step are done.
///
/// # Errors
/// When either cannot be read or written, or what is read back differs.
pub fn write(
    image: &impl Storage,
    length: u64,
    to: &impl Storage,
    capacity: u64,
    mut progress: impl FnMut(Step, u64),
) -> Result<()> {
    ensure!(length <= capacity, "the image has {length} bytes, the target {capacity}");
    let piece = PIECE as u64;
    let written = || "failed to write the image; the target is not usable now".to_owned();
    let clear = |at: u64, count: u64| to.write_at(&vec![0; count as usize], at);
    clear(0, piece.min(capacity))
        .and_then(|()| clear(capacity - piece.min(capacity), piece.min(capacity)))
        .and_then(|()| to.flush())
        .with_context(written)?;
    let mut buffer = vec![0; PIECE];
    let pieces = || (piece..length).step_by(PIECE).chain([0]);
    let mut done = 0;
    for at in pieces() {
        // With little left to do, the rest must be there before the beginning is.
        if at == 0 {
            to.flush().with_context(written)?;
        }
        let part = &mut buffer[..piece.min(length - at) as usize];
        image.read_at(part, at).context("failed to read the image")?;
        to.write_at(part, at).with_context(written)?;
        done += part.len() as u64;
        progress(Step::Write, done);
    }
    to.flush().with_context(written)?;
    compare(image, length, to, |done| progress(Step::Compare, done))
}

fn compare(
    image: &impl Storage,
    length: u64,
    to: &impl Storage,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let (mut wanted, mut there) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < length {
        let count = (PIECE as u64).min(length - at) as usize;
        image.read_at(&mut wanted[..count], at).context("failed to read the image")?;
        to.read_at(&mut there[..count], at).context("failed to read back what was written")?;
        let differs = wanted[..count].iter().zip(&there[..count]).position(|(wanted, there)| wanted != there);
        if let Some(within) = differs {
            return Err(io::Error::from(io::ErrorKind::InvalidData)).context(format!(
                "byte {} reads back differently from what was written: do not use this stick or disk, it does not keep \
                 what is written to it",
                at + within as u64
            ));
        }
        at += count as u64;
        progress(at);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::memory::Memory, *};

    fn image() -> Vec<u8> {
        (0..PIECE * 3 + 777).map(|n| (n % 251) as u8 | 1).collect()
    }

    #[test]
    fn writes_all_of_it_clears_the_end_and_leaves_the_middle() {
        let image = image();
        let target = Memory::new(vec![0xa5; PIECE * 6]);
        let mut seen = Vec::new();
        let length = image.len() as u64;
        let source = Memory::new(image.clone());
        write(&source, length, &target, (PIECE * 6) as u64, |step, done| seen.push((step, done))).unwrap();
        let bytes = target.bytes.borrow();
        assert!(bytes[..image.len()] == image[..], "the image is there");
        assert!(bytes[image.len()..PIECE * 5].iter().all(|byte| *byte == 0xa5), "what is behind it is left");
        assert!(bytes[PIECE * 5..].iter().all(|byte| *byte == 0), "an older table's copy is gone");
        assert_eq!(seen.iter().filter(|(step, done)| (*step, *done) == (Step::Compare, length)).count(), 1);
        assert!(seen.contains(&(Step::Write, length)));
    }

    #[test]
    fn interrupted_it_has_no_partition_table() {
        let (image, target) = (Memory::new(image()), Memory::new(vec![0xa5; PIECE * 6]));
        let length = image.bytes.borrow().len() as u64;
        write(&image, length, &target, (PIECE * 6) as u64, |_, _| {}).unwrap();
        for cut in 1..target.writes.get() {
            target.writes_left.set(Some(cut));
            assert!(write(&image, length, &target, (PIECE * 6) as u64, |_, _| {}).is_err());
            let begins_empty = target.bytes.borrow()[..PIECE].iter().all(|byte| *byte == 0);
            assert!(begins_empty, "cut after {cut} writes");
        }
    }

    #[test]
    fn a_medium_that_does_not_keep_what_it_was_given_is_named() {
        struct Forgets(Memory);
        impl Storage for Forgets {
            fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
                self.0.read_at(buffer, offset % (PIECE as u64 * 2))
            }
            fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
                self.0.write_at(bytes, offset % (PIECE as u64 * 2))
            }
            fn flush(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let image = Memory::new(image());
        let length = image.bytes.borrow().len() as u64;
        let fake = Forgets(Memory::new(vec![0; PIECE * 2]));
        let error = write(&image, length, &fake, (PIECE * 6) as u64, |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("reads back differently"), "{error}");
        let small = Memory::new(vec![0; PIECE]);
        assert!(write(&image, length, &small, PIECE as u64, |_, _| {}).is_err());
    }
}
