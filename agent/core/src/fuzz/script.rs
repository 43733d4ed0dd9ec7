// SPDX-License-Identifier: Apache-2.0
//! Fuzz input as a script: what it runs out of reads as zero, so every input means something.

use std::net::{IpAddr, SocketAddr};

/// Steps that one script may take; more would only make single runs slow.
const MAX_STEPS: usize = 64;

pub(super) struct Script<'a> {
    rest: &'a [u8],
    steps: usize,
}

impl<'a> Script<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, steps: 0 }
    }

    /// The code of the next step, `None` at the end.
    pub(super) fn step(&mut self) -> Option<u8> {
        self.steps += 1;
        (!self.rest.is_empty() && self.steps <= MAX_STEPS).then(|| self.u8())
    }

    pub(super) fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.array())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.array())
    }

    pub(super) fn flag(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    pub(super) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let count = N.min(self.rest.len());
        let (taken, rest) = self.rest.split_at(count);
        array[..count].copy_from_slice(taken);
        self.rest = rest;
        array
    }

    /// Bytes behind a u16 length, or as many as there are.
    pub(super) fn bytes(&mut self) -> &'a [u8] {
        let count = usize::from(self.u16()).min(self.rest.len());
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        taken
    }

    /// Text behind a u8 length; what is not UTF-8 is replaced.
    pub(super) fn text(&mut self) -> String {
        let count = usize::from(self.u8()).min(self.rest.len());
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        String::from_utf8_lossy(taken).into_owned()
    }

    pub(super) fn socket(&mut self) -> SocketAddr {
        let ip = if self.flag() { IpAddr::from(self.array::<4>()) } else { IpAddr::from(self.array::<16>()) };
        SocketAddr::new(ip, self.u16())
    }
}
