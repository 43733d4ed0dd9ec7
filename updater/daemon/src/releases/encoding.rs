// SPDX-License-Identifier: Apache-2.0
//! `Content-Encoding: zstd` (RFC 8878) between members. It is undone here, by the process without rights, into a buffer as long
//! as what was asked for: whatever claims to be more is an error before it takes memory.

use std::io;

use zstd::zstd_safe::find_frame_compressed_size;

/// The encoding's name in HTTP.
pub(super) const NAME: &str = "zstd";
/// More is for who compresses once and sends often.
const LEVEL: i32 = 3;

/// The same in fewer bytes, if it gets fewer.
pub(super) fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut compressed = vec![0; bytes.len()];
    // What does not fit was not worth it.
    let count = zstd::bulk::compress_to_buffer(bytes, &mut compressed, LEVEL).ok()?;
    compressed.truncate(count);
    (count < bytes.len()).then_some(compressed)
}

/// Exactly `bytes` bytes, of one frame and nothing else.
pub(super) fn decompress(compressed: &[u8], bytes: usize) -> io::Result<Vec<u8>> {
    // zstd goes on to the next frame.
    if find_frame_compressed_size(compressed) != Ok(compressed.len()) {
        return Err(io::Error::other("not one frame of zstd"));
    }
    let mut plain = vec![0; bytes];
    let count = zstd::bulk::decompress_to_buffer(compressed, &mut plain)?;
    if count != bytes {
        return Err(io::Error::other("fewer bytes than were asked for"));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_exactly_as_long_as_it_must_be() {
        let plain = b"the same again, ".repeat(1000);
        let compressed = compress(&plain).unwrap();
        assert!(compressed.len() < 100);
        assert_eq!(decompress(&compressed, plain.len()).unwrap(), plain);
        for wrong in [0, 1, plain.len() - 1, plain.len() + 1] {
            assert!(decompress(&compressed, wrong).is_err(), "{wrong}");
        }
        for cut in 0..compressed.len() {
            assert!(decompress(&compressed[..cut], plain.len()).is_err(), "{cut}");
        }
    }

    #[test]
    fn an_answer_is_one_frame() {
        let plain = b"the same again, ".repeat(1000);
        let frame = compress(&plain).unwrap();
        let (first, last) = plain.split_at(plain.len() / 2);
        let two = [compress(first).unwrap(), compress(last).unwrap()].concat();
        // RFC 8878, 3.1.2: what decoders pass over.
        let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 7], &frame[..]].concat();
        for bad in [two, skipped, [&frame[..], &[0]].concat()] {
            assert!(decompress(&bad, plain.len()).is_err());
        }
    }

    #[test]
    fn what_does_not_get_shorter_stays_as_it_is() {
        let noise: Vec<u8> =
            (0..128_u32).flat_map(|n| cluster_updater_core::Digest::of(&n.to_le_bytes()).0).collect();
        assert_eq!(compress(&noise), None);
        assert_eq!(compress(&[]), None);
    }
}
