// SPDX-License-Identifier: Apache-2.0
//! What agent/proto's encoding has no word for: bytes longer than 65535, and lists.

use cluster_agent_proto::wire::{Malformed, Reader, Writer};

/// Bytes behind a u32 length.
pub(crate) fn put_large(w: &mut Writer, bytes: &[u8]) {
    w.u32(bytes.len() as u32).raw(bytes);
}

/// What [`put_large`] wrote, at most `max` bytes.
pub(crate) fn take_large<'a>(r: &mut Reader<'a>, max: usize) -> Result<&'a [u8], Malformed> {
    let length = r.u32()? as usize;
    if length > max { Err(r.malformed()) } else { r.take(length) }
}

/// 0 or 1.
pub(crate) fn take_flag(r: &mut Reader<'_>) -> Result<bool, Malformed> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(r.malformed()),
    }
}

/// A value that may not be there.
pub(crate) fn put_option<T>(w: &mut Writer, value: Option<T>, put: impl FnOnce(&mut Writer, T)) {
    match value {
        Some(value) => put(w.u8(1), value),
        None => {
            w.u8(0);
        }
    }
}

/// What [`put_option`] wrote.
pub(crate) fn take_option<T>(
    r: &mut Reader<'_>,
    take: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    if take_flag(r)? { take(r).map(Some) } else { Ok(None) }
}
