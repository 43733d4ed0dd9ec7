// SPDX-License-Identifier: Apache-2.0
//! Our own encoding: big-endian integers and length-prefixed bytes, read with bounds and never with trust.
//!
//! There are no tags, no optional fields and no recursion; a format is the sequence of its fields. What may change is told
//! apart by the version in the first byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct Malformed(pub &'static str);

/// Appends fields.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    /// Big-endian.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Big-endian.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Big-endian.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Bytes without a length: the reader knows how many.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Up to 65535 bytes behind a u16 length. Longer ones are cut; callers bound what they write.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.u16(length).raw(&bytes[..usize::from(length)])
    }

    /// Up to 255 bytes of text behind a u8 length, cut at a character.
    pub fn text(&mut self, text: &str) -> &mut Self {
        let mut end = text.len().min(255);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.u8(end as u8).raw(&text.as_bytes()[..end])
    }

    /// Family (4 or 6), address, port. The scope of a link-local address is not written: it means nothing elsewhere.
    pub fn socket(&mut self, address: &SocketAddr) -> &mut Self {
        match address.ip() {
            IpAddr::V4(ip) => self.u8(4).raw(&ip.octets()),
            IpAddr::V6(ip) => self.u8(6).raw(&ip.octets()),
        }
        .u16(address.port())
    }

    /// What was written.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }
}

/// Takes fields from the front.
pub struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// `what` names the thing in errors.
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { bytes, what }
    }

    /// The error of this reader.
    pub fn malformed(&self) -> Malformed {
        Malformed(self.what)
    }

    /// So many bytes.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Malformed(self.what))?;
        self.bytes = rest;
        Ok(taken)
    }

    /// So many bytes, as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// Big-endian.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Big-endian.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Bytes behind a u16 length, at most `max`.
    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let length = usize::from(self.u16()?);
        if length > max { Err(self.malformed()) } else { self.take(length) }
    }

    /// Printable text without control characters.
    pub fn text(&mut self, max: usize) -> Result<String, Malformed> {
        let length = usize::from(self.u8()?);
        let bytes = if length > max { Err(self.malformed()) } else { self.take(length) }?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.malformed())?;
        if text.chars().any(char::is_control) { Err(self.malformed()) } else { Ok(text.to_owned()) }
    }

    /// What [`Writer::socket`] wrote.
    pub fn socket(&mut self) -> Result<SocketAddr, Malformed> {
        let ip = match self.u8()? {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return Err(self.malformed()),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    /// Refuses left-over bytes.
    pub fn end(self) -> Result<(), Malformed> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Malformed(self.what)) }
    }
}

/// Whether an address means something only together with a network card.
pub fn needs_interface(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local())
}

/// The same address with the scope that link-local addresses need on this machine.
pub fn with_scope(address: SocketAddr, interface: u32) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
            SocketAddr::V6(SocketAddrV6::new(*v6.ip(), v6.port(), 0, interface))
        }
        other => SocketAddr::new(other.ip(), other.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_back_what_it_writes(a: u8, b: u16, c: u32, d: u64, e: Vec<u8>, f in "[a-z ]{0,200}", ip: IpAddr, port: u16) {
            let socket = SocketAddr::new(ip, port);
            let bytes = Writer::new().u8(a).u16(b).u32(c).u64(d).bytes(&e).text(&f).socket(&socket).finish();
            let mut r = Reader::new("test", &bytes);
            prop_assert_eq!((r.u8(), r.u16(), r.u32(), r.u64()), (Ok(a), Ok(b), Ok(c), Ok(d)));
            prop_assert_eq!(r.bytes(usize::MAX), Ok(&e[..]));
            prop_assert_eq!(r.text(255), Ok(f));
            prop_assert_eq!(r.socket(), Ok(socket));
            prop_assert_eq!(r.end(), Ok(()));
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let mut r = Reader::new("test", &bytes);
            while r.bytes(100).is_ok() && r.text(10).is_ok() && r.socket().is_ok() {}
        }
    }
}
