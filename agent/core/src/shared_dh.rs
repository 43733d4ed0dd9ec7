// SPDX-License-Identifier: Apache-2.0
//! X25519 as a thousand simulated nodes need it: more than half of a large run would go into it. A result follows from
//! the two keys alone and both sides come to the same one, so the simulation works each out once, and it draws the
//! one-time keys of handshakes from a few. Nothing that ships has this.

use std::cell::RefCell;
use std::collections::HashMap;

use snow::types::{Dh, Random};
use x25519_dalek::{PublicKey, StaticSecret, x25519};

type Key = [u8; 32];

thread_local! {
    static PUBLIC: RefCell<HashMap<Key, Key>> = RefCell::default();
    /// By the two public keys, the lower one first.
    static SECRETS: RefCell<HashMap<(Key, Key), Key>> = RefCell::default();
}

/// One key pair.
#[derive(Default)]
pub(crate) struct SharedDh {
    private: Key,
    public: Key,
}

impl Dh for SharedDh {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, private: &[u8]) {
        self.private.copy_from_slice(private);
        let public = || PublicKey::from(&StaticSecret::from(self.private)).to_bytes();
        self.public = PUBLIC.with_borrow_mut(|known| *known.entry(self.private).or_insert_with(public));
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut random = [0; 32];
        rng.try_fill_bytes(&mut random)?;
        // One of 256.
        self.set(&[random[0]; 32]);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let mut theirs = [0; 32];
        theirs.copy_from_slice(&public[..32]);
        let pair = (self.public.min(theirs), self.public.max(theirs));
        let secret = || x25519(self.private, theirs);
        let secret = SECRETS.with_borrow_mut(|known| *known.entry(pair).or_insert_with(secret));
        out[..32].copy_from_slice(&secret);
        Ok(())
    }
}
